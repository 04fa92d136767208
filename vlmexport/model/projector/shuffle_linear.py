"""Idefics3's and SmolVLM's connector: squares of features move into the channels, then one linear layer without bias.

Source: Laurençon et al. 2024, arXiv:2408.12637. The features of a square stand row by row. ``shuffle4_linear`` joins
4x4 of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.families.reading.bundles import Field
from vlmexport.model.protocols import GgufProjector
from vlmexport.model.squares import divided, joined
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"shuffle([1-9]\d?)_linear"
EXAMPLE = "shuffle4_linear"


def side(spec: ProjectorSpec) -> int:
    """Features along one side of a square."""
    found = re.fullmatch(PATTERN, spec.kind)
    assert found is not None
    return int(found[1])


def token_grid(spec: ProjectorSpec) -> Grid:
    """One visual token for each square.

    Raises:
        Unsupported: squares do not divide the features; the message says which would do.
    """
    return divided(spec, side(spec))


def build(spec: ProjectorSpec) -> nn.Module:
    """Name: ``proj.weight``; errors as ``token_grid``."""
    import torch
    from torch import nn

    grid, each = token_grid(spec), side(spec)

    class ShuffleLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(each**2 * spec.in_features, spec.out_features, bias=False)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.proj(joined(features, grid, each))
            return tokens

    with torch.device("meta"):
        return ShuffleLinear()


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {"proj.weight": (spec.out_features, side(spec) ** 2 * spec.in_features)}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd's ``idefics3``, for which it cuts pictures into tiles."""
    factor: dict[str, Field] = {"clip.vision.projector.scale_factor": ("u32", side(spec))}
    return GgufProjector("idefics3", {"proj.weight": "mm.model.fc.weight"}, fields=factor, mode="tiles")
