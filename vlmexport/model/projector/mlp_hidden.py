"""``mlpNx_reluH`` and ``mlpNx_geluH``: N linear layers with an activation between, H wide inside.

The ReLU one is the plain projector of tutorials (input, hidden and output width apart); nanoVLM-like models built from
scratch take ``mlp2x_geluH`` with H four times the vision width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector

if TYPE_CHECKING:
    from torch import nn

PATTERN = r"mlp([1-9]\d*)x_(relu|gelu)([1-9]\d*)"
EXAMPLE = "mlp2x_relu96"


def _parts(spec: ProjectorSpec) -> tuple[int, str, int]:
    """Number of layers, activation, hidden width."""
    match = re.fullmatch(PATTERN, spec.kind)
    assert match is not None
    return int(match[1]), match[2], int(match[3])


def _widths(spec: ProjectorSpec) -> list[int]:
    """Width before the first layer, between, and after the last."""
    depth, _, hidden = _parts(spec)
    return [spec.in_features, *[hidden] * (depth - 1), spec.out_features]


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``0``, ``2``, … ``2(N-1)`` with ``weight`` and ``bias``."""
    import torch
    from torch import nn

    widths, activation = _widths(spec), {"relu": nn.ReLU, "gelu": nn.GELU}[_parts(spec)[1]]
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for i in range(1, len(widths) - 1):
            layers += [activation(), nn.Linear(widths[i], widths[i + 1])]
        return nn.Sequential(*layers)


def num_tokens(spec: ProjectorSpec) -> int:
    """One visual token for each patch."""
    return spec.in_tokens


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    widths = _widths(spec)
    found: dict[str, tuple[int, ...]] = {}
    for i in range(len(widths) - 1):
        found |= {f"{2 * i}.weight": (widths[i + 1], widths[i]), f"{2 * i}.bias": (widths[i + 1],)}
    return found


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """Two layers with GELU are LLaVA's ``mm.0`` and ``mm.2``, whatever their width; libmtmd has no other."""
    depth, activation, _ = _parts(spec)
    if (depth, activation) != (2, "gelu"):
        raise Unsupported(f"libmtmd would compute {spec.kind} wrongly (it knows two layers with GELU)", HYBRID)
    names = [f"{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]
    return GgufProjector("mlp", {name: f"mm.{name}" for name in names})
