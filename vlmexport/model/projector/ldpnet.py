"""MobileVLM V1's LDP: two linear layers, then two inverted-residual blocks, the second with stride 2.
Source: Chu et al. 2023, arXiv:2312.16886; the blocks follow MobileNetV3, arXiv:1905.02244."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.model.protocols import HYBRID, GgufProjector
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "ldpnet"
_EPS = 1e-5


def squeeze_channels(channels: int) -> int:
    """A quarter of the channels, rounded to a multiple of 8 and never more than 10 % below (MobileNetV3)."""
    quarter = channels // 4
    rounded = max(8, int(quarter + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * quarter else rounded


def _inverted_residual(channels: int, stride: int) -> nn.Module:
    """Depthwise 3x3, a gate for each channel from the map's mean, pointwise; a skip connection for stride 1."""
    from torch import nn
    from torch.nn import functional

    class ChannelNorm(nn.LayerNorm):
        """Over the channels of an [N, C, H, W] map."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    class SqueezeExcitation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            squeezed = squeeze_channels(channels)
            self.fc1 = nn.Conv2d(channels, squeezed, 1)
            self.fc2 = nn.Conv2d(squeezed, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.fc2(functional.relu(self.fc1(x.mean((2, 3), keepdim=True))))
            return functional.hardsigmoid(scale) * x

    class InvertedResidual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            self.block = nn.Sequential(
                nn.Sequential(depthwise, ChannelNorm(channels, _EPS), nn.Hardswish()),
                SqueezeExcitation(),
                nn.Sequential(pointwise, ChannelNorm(channels, _EPS)),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.block(x)
            return x + y if stride == 1 else y

    return InvertedResidual()


def _module(spec: ProjectorSpec) -> nn.Module:
    """[views, grid², in] → [views, ceil(grid / 2)², out]."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            linear = nn.Linear(spec.in_features, inner)
            self.mlp = nn.Sequential(nn.Identity(), linear, nn.GELU(), nn.Linear(inner, inner))
            blocks = (_inverted_residual(inner, stride) for stride in (1, 2))
            self.mb_block = nn.Sequential(nn.Identity(), *blocks)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = self.mlp(features).transpose(1, 2).unflatten(2, (spec.grid, spec.grid))
            tokens: torch.Tensor = self.mb_block(x).flatten(2).transpose(1, 2)
            return tokens

    class LDP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Block(spec.out_features)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            tokens: torch.Tensor = self.model(features)
            return tokens

    with torch.device("meta"):
        return LDP()


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names: ``model.mlp.{1,3}``, ``model.mb_block.{1,2}.block.{0,1,2}``.

    Raises:
        Unsupported: the patches are no square.
    """
    if spec.grid**2 != spec.in_tokens:
        raise Unsupported(f"ldpnet needs a square of patches, not {spec.in_tokens}", "use a square image")
    return _module(spec)


def token_grid(spec: ProjectorSpec) -> Grid:
    """A quarter of the patches."""
    return (spec.grid + 1) // 2, (spec.grid + 1) // 2


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    inner, squeezed = spec.out_features, squeeze_channels(spec.out_features)
    found: dict[str, tuple[int, ...]] = {
        "model.mlp.1.weight": (inner, spec.in_features), "model.mlp.1.bias": (inner,),
        "model.mlp.3.weight": (inner, inner), "model.mlp.3.bias": (inner,),
    }  # fmt: skip
    for block in (f"model.mb_block.{b}.block" for b in (1, 2)):
        found |= {f"{block}.0.0.weight": (inner, 1, 3, 3), f"{block}.2.0.weight": (inner, inner, 1, 1)}
        found |= {f"{block}.{i}.{part}": (inner,) for i in ("0.1", "2.1") for part in ("weight", "bias")}
        found |= {f"{block}.1.fc1.weight": (squeezed, inner, 1, 1), f"{block}.1.fc1.bias": (squeezed,)}
        found |= {f"{block}.1.fc2.weight": (inner, squeezed, 1, 1), f"{block}.1.fc2.bias": (inner,)}
    return found


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """``mm.model.mlp`` and ``mm.model.mb_block``; libmtmd hard-codes the 24x24 grid."""
    if spec.grid != 24:
        raise Unsupported(f"libmtmd hard-codes a 24x24 grid for ldpnet, this one is {spec.grid}x{spec.grid}", HYBRID)
    parts = ["weight", "bias"]
    names = [f"model.mlp.{i}.{part}" for i in (1, 3) for part in parts]
    for b in (1, 2):
        block = f"model.mb_block.{b}.block"
        names += [f"{block}.0.0.weight", f"{block}.2.0.weight"]
        names += [f"{block}.{i}.{part}" for i in ("0.1", "1.fc1", "1.fc2", "2.1") for part in parts]
    depthwise = frozenset(f"model.mb_block.{b}.block.0.0.weight" for b in (1, 2))
    return GgufProjector("ldp", {name: f"mm.{name}" for name in names}, depthwise, norm_eps=_EPS)
