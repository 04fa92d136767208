"""``pool_avg`` (or ``pool``) and ``pool_max``: 2x2 neighbours pooled, then a linear layer; a quarter of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import halved

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"pool(?:_(avg|max))?"
EXAMPLE = "pool_max"
token_grid = halved


def build(spec: ProjectorSpec) -> nn.Module:
    """Names: ``proj.weight``, ``proj.bias``.

    Raises:
        Unsupported: the features are no square with even sides.
    """
    import torch
    from torch import nn

    halved(spec)

    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2) if spec.kind == "pool_max" else nn.AvgPool2d(2)
            self.proj = nn.Linear(spec.in_features, spec.out_features)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self.pool(torch.unflatten(features.transpose(1, 2), 2, (spec.grid, spec.grid)))
            tokens: torch.Tensor = self.proj(x.flatten(2).transpose(1, 2))
            return tokens

    with torch.device("meta"):
        return Pool()


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {"proj.weight": (spec.out_features, spec.in_features), "proj.bias": (spec.out_features,)}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd has no such projector."""
    raise Unsupported("libmtmd has no projector that pools and has one layer", HYBRID)
