"""2x2 neighbours concatenated on the channel dimension, then one linear layer: a quarter of the tokens.

As LLaVA-like models for high resolutions do it (MiniGPT-v2: Chen et al. 2023, arXiv:2310.09478, with four tokens of a
row instead of a square). The four stand in the order left-top, right-top, left-bottom, right-bottom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import halved, joined

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "concat_mlp"
token_grid = halved


def build(spec: ProjectorSpec) -> nn.Module:
    """Names: ``proj.weight``, ``proj.bias``.

    Raises:
        Unsupported: the features are no square with even sides.
    """
    import torch
    from torch import nn

    grid = halved(spec)

    class ConcatMlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4 * spec.in_features, spec.out_features)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.proj(joined(features, grid))
            return tokens

    with torch.device("meta"):
        return ConcatMlp()


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {"proj.weight": (spec.out_features, 4 * spec.in_features), "proj.bias": (spec.out_features,)}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd has no such projector."""
    raise Unsupported("libmtmd has no projector that concatenates neighbours and has one layer", HYBRID)
