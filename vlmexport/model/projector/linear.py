"""One linear layer (LLaVA's ``linear``). Source: Liu et al. 2023, arXiv:2304.08485."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import unchanged

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "linear"
token_grid = unchanged


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``weight``, ``bias``."""
    from torch import nn

    return nn.Linear(spec.in_features, spec.out_features, device="meta")


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    return {"weight": (spec.out_features, spec.in_features), "bias": (spec.out_features,)}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd aborts on it."""
    raise Unsupported("libmtmd cannot hold a linear projector (it aborts)", HYBRID)
