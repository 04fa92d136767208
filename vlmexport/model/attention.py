"""Multi-head attention of plain linear layers, so that calibration sees what goes into each."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Queries of one sequence over keys and values of another. Source: Vaswani et al. 2017, arXiv:1706.03762.

    Args:
        width: of queries and output, a multiple of ``heads``.
        source: width of what keys and values are made of.
        bias: of the query, key and value projections.
        scale: of the products; one over the root of a head's width where it is None.
    """

    def __init__(self, width: int, source: int, heads: int, bias: bool = True, scale: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5 if scale is None else scale
        self.q_proj = nn.Linear(width, width, bias)
        self.k_proj = nn.Linear(source, width, bias)
        self.v_proj = nn.Linear(source, width, bias)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """f32 [views, n, width] and [views, m, source] → [views, n, width]."""
        q, k, v = (self._split(y) for y in (self.q_proj(x), self.k_proj(source), self.v_proj(source)))
        weights = functional.softmax(q @ k.transpose(-1, -2) * self.scale, -1)
        output: torch.Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return output

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)
