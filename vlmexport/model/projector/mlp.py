"""``mlpNx_gelu``, ``mlpNx_geluH`` and ``mlpNx_reluH``: N linear layers with an activation between, H wide inside;
as wide as the language model where there is no H.

``mlp2x_gelu`` is LLaVA-1.5's (Liu et al. 2023, arXiv:2310.03744). The ReLU one is the plain projector of tutorials;
nanoVLM-like models built from scratch take ``mlp2x_geluH`` with H four times the vision width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.model.squares import unchanged

if TYPE_CHECKING:
    from torch import nn

PATTERN = r"mlp([1-9]\d*)x_(relu(?=\d)|gelu)([1-9]\d*)?"
EXAMPLE = "mlp2x_gelu"
token_grid = unchanged


def _parts(spec: ProjectorSpec) -> tuple[str, list[int]]:
    """Activation; width before the first layer, between, and after the last."""
    match = re.fullmatch(PATTERN, spec.kind)
    assert match is not None
    hidden = int(match[3] or spec.out_features)
    return match[2], [spec.in_features, *[hidden] * (int(match[1]) - 1), spec.out_features]


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``0``, ``2``, … ``2(N-1)`` with ``weight`` and ``bias``."""
    import torch
    from torch import nn

    name, widths = _parts(spec)
    activation = {"relu": nn.ReLU, "gelu": nn.GELU}[name]
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for i in range(1, len(widths) - 1):
            layers += [activation(), nn.Linear(widths[i], widths[i + 1])]
        return nn.Sequential(*layers)


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    _, widths = _parts(spec)
    found: dict[str, tuple[int, ...]] = {}
    for i in range(len(widths) - 1):
        found |= {f"{2 * i}.weight": (widths[i + 1], widths[i]), f"{2 * i}.bias": (widths[i + 1],)}
    return found


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """Two layers with GELU are ``mm.0`` and ``mm.2``, whatever their width. libmtmd has no other: it cuts deeper ones
    short without a word."""
    activation, widths = _parts(spec)
    if (activation, len(widths)) != ("gelu", 3):
        raise Unsupported(f"libmtmd computes {spec.kind} wrongly (it knows two layers with GELU)", HYBRID)
    names = [f"{i}.{part}" for i in (0, 2) for part in ("weight", "bias")]
    return GgufProjector("mlp", {name: f"mm.{name}" for name in names})
