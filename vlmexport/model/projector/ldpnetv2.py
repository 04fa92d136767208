"""MobileVLM V2's LDPv2: two linear layers, average pooling to 12x12 tokens, and a depthwise 3x3 positional
encoding with a skip connection. Source: Chu et al. 2024, arXiv:2402.03766."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "ldpnetv2"
SIDE = 12
"""Visual tokens along one side, as published."""


def _module(spec: ProjectorSpec) -> nn.Module:
    """[views, grid², in] → [views, 144, out]."""
    import torch
    from torch import nn

    inner, side = spec.out_features, spec.grid

    class FeatureTransform(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(spec.in_features, inner), nn.GELU(), nn.Linear(inner, inner))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.mlp(x)
            return output

    class PositionalEncoding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peg = nn.Sequential(nn.Conv2d(inner, inner, 3, 1, 1, groups=inner))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.peg(x) + x
            return output

    class LDPv2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = FeatureTransform()
            self.pool = nn.AvgPool2d(side // SIDE)
            self.peg = PositionalEncoding()

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self.mlp(features).transpose(1, 2).unflatten(2, (side, side))
            tokens: torch.Tensor = self.peg(self.pool(x)).flatten(2).transpose(1, 2)
            return tokens

    with torch.device("meta"):
        return LDPv2()


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``mlp.mlp.{0,2}``, ``peg.peg.0``.

    Raises:
        Unsupported: the patches are no square, or its side is no multiple of 12 (there the published adaptive
            pooling would cut windows of unequal size, which no exported operator has).
    """
    if spec.grid**2 != spec.in_tokens or spec.grid % SIDE:
        raise Unsupported(
            f"ldpnetv2 pools a square of patches to {SIDE}x{SIDE}; {spec.in_tokens} patches do not divide",
            "use an image size that gives 12x12, 24x24, 36x36 … patches",
        )
    return _module(spec)


def token_grid(_: ProjectorSpec) -> Grid:
    """144 visual tokens, whatever the patches."""
    return SIDE, SIDE


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    inner = spec.out_features
    weights = {"mlp.mlp.0": (inner, spec.in_features), "mlp.mlp.2": (inner, inner), "peg.peg.0": (inner, 1, 3, 3)}
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in weights.items()}
    return found | {f"{name}.bias": (inner,) for name in weights}


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """``mm.model.mlp`` and ``mm.model.peg``; libmtmd hard-codes the 24x24 grid."""
    if spec.grid != 24:
        raise Unsupported(f"libmtmd hard-codes a 24x24 grid for ldpnetv2, this one is {spec.grid}x{spec.grid}", HYBRID)
    tensors = {f"mlp.mlp.{i}.{part}": f"mm.model.mlp.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    tensors |= {f"peg.peg.0.{part}": f"mm.model.peg.0.{part}" for part in ("weight", "bias")}
    return GgufProjector("ldpv2", tensors, frozenset({"peg.peg.0.weight"}))
