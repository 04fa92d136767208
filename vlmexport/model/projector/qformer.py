"""``qformer[N[xW]]``: N learned queries (96), W wide (768), gather an image in two layers of attention.

A layer is one of BLIP-2's Q-Former: the queries attend to each other, then to the features, then a feed-forward of
four times the width, each with a norm after its skip connection. Source: Li et al. 2023, arXiv:2301.12597. BLIP-2 has
twelve layers and 32 queries; phones get two, and 1024 features become 96 tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"qformer(?:([1-9]\d*)(?:x([1-9]\d*))?)?"
EXAMPLE = "qformer16x64"
_QUERIES, _WIDTH, _LAYERS, _HEAD, _EXPANSION = 96, 768, 2, 64, 4


def _sizes(spec: ProjectorSpec) -> tuple[int, int]:
    """Number of queries, width."""
    match = re.fullmatch(PATTERN, spec.kind)
    queries, width = (match[1], match[2]) if match else (None, None)
    found = int(queries or _QUERIES), int(width or _WIDTH)
    if found[1] % _HEAD:
        raise Unsupported(f"{spec.kind} has heads of {_HEAD}, {found[1]} do not divide", f"use a multiple of {_HEAD}")
    return found


def _module(spec: ProjectorSpec) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn import functional

    from vlmexport.model.attention import Attention

    queries, width = _sizes(spec)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = Attention(width, width, width // _HEAD)
            self.cross_attn = Attention(width, spec.in_features, width // _HEAD)
            self.fc1, self.fc2 = nn.Linear(width, _EXPANSION * width), nn.Linear(_EXPANSION * width, width)
            self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

        def forward(self, x: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
            x = self.norm1(x + self.self_attn(x, x))
            x = self.norm2(x + self.cross_attn(x, features))
            output: torch.Tensor = self.norm3(x + self.fc2(functional.gelu(self.fc1(x))))
            return output

    class QFormer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.empty(queries, width))
            self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
            self.proj = nn.Linear(width, spec.out_features)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self.queries[None].expand(features.shape[0], -1, -1)
            for layer in self.layers:
                x = layer(x, features)
            tokens: torch.Tensor = self.proj(x)
            return tokens

    with torch.device("meta"):
        return QFormer()


def build(spec: ProjectorSpec) -> nn.Module:
    """Names: ``queries``, ``layers.{0,1}.{self_attn,cross_attn,fc1,fc2,norm1,norm2,norm3}``, ``proj``.

    Raises:
        Unsupported: the width is no multiple of a head's.
    """
    return _module(spec)


def token_grid(spec: ProjectorSpec) -> Grid:
    """One visual token for each query: a row, for they are of no place in the picture."""
    return 1, _sizes(spec)[0]


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    queries, width = _sizes(spec)
    layers = {"proj": (spec.out_features, width)}
    norms = []
    for place in (f"layers.{i}" for i in range(_LAYERS)):
        layers |= {f"{place}.self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        layers |= {f"{place}.cross_attn.{part}_proj": (width, width) for part in ("q", "out")}
        layers |= {f"{place}.cross_attn.{part}_proj": (width, spec.in_features) for part in ("k", "v")}
        layers |= {f"{place}.fc1": (_EXPANSION * width, width), f"{place}.fc2": (width, _EXPANSION * width)}
        norms += [f"{place}.norm{i}" for i in (1, 2, 3)]
    found: dict[str, tuple[int, ...]] = {"queries": (queries, width)}
    found |= {f"{name}.weight": shape for name, shape in layers.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return found | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd has no such projector."""
    raise Unsupported("libmtmd has no projector with learned queries like these", HYBRID)
