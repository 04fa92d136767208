"""``bottleneck_transformer[B]``: a linear layer to B wide (512), two transformer layers, a linear layer to the output.

Post-norm layers of 8 heads and a ReLU feed-forward of 2048, the defaults of torch's ``TransformerEncoderLayer``.
Attention runs over the patches of an image (``batch_first``), not over the images of a batch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import unchanged

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"bottleneck_transformer([1-9]\d*)?"
EXAMPLE = "bottleneck_transformer64"
token_grid = unchanged
_WIDTH, _LAYERS, _HEADS, _INNER = 512, 2, 8, 2048


def _width(spec: ProjectorSpec) -> int:
    match = re.fullmatch(PATTERN, spec.kind)
    width = int(match[1] or _WIDTH) if match else _WIDTH
    if width % _HEADS:
        raise Unsupported(f"{spec.kind} has {_HEADS} heads, {width} do not divide", f"use a multiple of {_HEADS}")
    return width


def _module(spec: ProjectorSpec) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    from vlmexport.model.attention import Attention

    width = _width(spec)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = Attention(width, width, _HEADS)
            self.linear1, self.linear2 = nn.Linear(width, _INNER), nn.Linear(_INNER, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm1(x + self.self_attn(x, x))
            output: torch.Tensor = self.norm2(x + self.linear2(functional.relu(self.linear1(x))))
            return output

    class BottleneckTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear_in = nn.Linear(spec.in_features, width)
            self.layers = nn.Sequential(*(Layer() for _ in range(_LAYERS)))
            self.linear_out = nn.Linear(width, spec.out_features)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.linear_out(self.layers(self.linear_in(features)))
            return tokens

    with torch.device("meta"):
        return BottleneckTransformer()


def build(spec: ProjectorSpec) -> nn.Module:
    """Names: ``linear_in``, ``layers.{0,1}.{self_attn,linear1,linear2,norm1,norm2}``, ``linear_out``.

    Raises:
        Unsupported: the width is no multiple of the heads.
    """
    return _module(spec)


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    width = _width(spec)
    layers = {"linear_in": (width, spec.in_features), "linear_out": (spec.out_features, width)}
    for place in (f"layers.{i}" for i in range(_LAYERS)):
        layers |= {f"{place}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        layers |= {f"{place}.linear1": (_INNER, width), f"{place}.linear2": (width, _INNER)}
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in layers.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    norms = [f"layers.{i}.norm{j}" for i in range(_LAYERS) for j in (1, 2)]
    return found | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd has no such projector."""
    raise Unsupported("libmtmd has no projector with transformer layers", HYBRID)
