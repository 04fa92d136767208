"""LLaVA-1.5's ``mlpNx_gelu``: N linear layers with GELU between. Source: Liu et al. 2023, arXiv:2310.03744."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector

if TYPE_CHECKING:
    from torch import nn

PATTERN = r"mlp(\d+)x_gelu"
EXAMPLE = "mlp2x_gelu"


def depth(spec: ProjectorSpec) -> int:
    """The N of ``mlpNx_gelu``."""
    match = re.fullmatch(PATTERN, spec.kind)
    return int(match[1]) if match else 2


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``0``, ``2``, … ``2(N-1)`` with ``weight`` and ``bias``."""
    import torch
    from torch import nn

    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Linear(spec.in_features, spec.out_features)]
        for _ in range(1, depth(spec)):
            layers += [nn.GELU(), nn.Linear(spec.out_features, spec.out_features)]
        return nn.Sequential(*layers)


def num_tokens(spec: ProjectorSpec) -> int:
    """One visual token for each patch."""
    return spec.in_tokens


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(depth(spec)):
        columns = spec.out_features if i else spec.in_features
        found |= {f"{2 * i}.weight": (spec.out_features, columns), f"{2 * i}.bias": (spec.out_features,)}
    return found


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """``mm.0`` and ``mm.2``; libmtmd silently cuts deeper ones short."""
    if depth(spec) != 2:
        raise Unsupported(f"libmtmd computes {spec.kind} wrongly (it reads two layers)", HYBRID)
    names = [f"{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]
    return GgufProjector("mlp", {name: f"mm.{name}" for name in names})
