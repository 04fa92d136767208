"""MobileVLM V2's LDPv2: two linear layers, average pooling to 12x12 tokens, and a depthwise 3x3 positional
encoding with a skip connection. Source: Chu et al. 2024, arXiv:2402.03766."""

from __future__ import annotations

import torch
from torch import nn

from vlmexport.checkpoint import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.plugins import GgufProjector

EXAMPLE = "ldpnetv2"
SIDE = 12
"""Visual tokens along one side, as published."""


class _FeatureTransform(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.mlp(x)
        return output


class _PositionalEncoding(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, groups=channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.peg(x) + x
        return output


class LDPv2(nn.Module):
    """[images, grid², in] → [images, 144, out]."""

    def __init__(self, spec: ProjectorSpec) -> None:
        super().__init__()
        self.grid = spec.grid
        self.mlp = _FeatureTransform(spec.in_features, spec.out_features)
        self.pool = nn.AvgPool2d(spec.grid // SIDE)
        self.peg = _PositionalEncoding(spec.out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.mlp(features).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        tokens: torch.Tensor = self.peg(self.pool(x)).flatten(2).transpose(1, 2)
        return tokens


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
    with torch.device("meta"):
        return LDPv2(spec)


def num_tokens(spec: ProjectorSpec) -> int:
    """144, whatever the grid."""
    return SIDE**2


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """``mm.model.mlp`` and ``mm.model.peg``; libmtmd hard-codes the 24x24 grid."""
    if spec.grid != 24:
        raise Unsupported(
            f"libmtmd hard-codes a 24x24 grid for ldpnetv2, this one is {spec.grid}x{spec.grid}", "use ONNX"
        )
    tensors = {f"mlp.mlp.{i}.{part}": f"mm.model.mlp.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    tensors |= {f"peg.peg.0.{part}": f"mm.model.peg.0.{part}" for part in ("weight", "bias")}
    return GgufProjector("ldpv2", tensors, frozenset({"peg.peg.0.weight"}))
