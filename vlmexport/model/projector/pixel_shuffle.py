"""InternVL's projector: 2x2 neighbours move into the channels, then a norm and two linear layers.

Source: Chen et al. 2024, arXiv:2404.16821; the channels are in the order of its ``pixel_shuffle`` (``ps_version`` v2,
which keeps rows rows: v1 leaves the map transposed).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.model.protocols import GgufProjector
from vlmexport.model.squares import halved, joined

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "pixel_shuffle"
token_grid = halved


def build(spec: ProjectorSpec) -> nn.Module:
    """Published names, without ``mlp1.``: ``0`` (norm), ``1`` and ``3``.

    Raises:
        Unsupported: the features are no square with even sides.
    """
    import torch
    from torch import nn

    grid, inner = halved(spec), 4 * spec.in_features

    class PixelShuffle(nn.Sequential):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            x = joined(features, grid)
            for layer in self:
                x = layer(x)
            return x

    with torch.device("meta"):
        first, second = nn.Linear(inner, spec.out_features), nn.Linear(spec.out_features, spec.out_features)
        return PixelShuffle(nn.LayerNorm(inner), first, nn.GELU(), second)


def shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    """Published name → shape."""
    inner, out = 4 * spec.in_features, spec.out_features
    return {
        "0.weight": (inner,), "0.bias": (inner,), "1.weight": (out, inner), "1.bias": (out,),
        "3.weight": (out, out), "3.bias": (out,),
    }  # fmt: skip


def gguf(spec: ProjectorSpec) -> GgufProjector:
    """libmtmd's ``internvl``, for which it cuts pictures into tiles, of other grids than the model."""
    names = {f"{layer}.{part}": f"mm.model.mlp.{layer}.{part}" for layer in (0, 1, 3) for part in ("weight", "bias")}
    return GgufProjector("internvl", names, fields={"clip.vision.projector.scale_factor": ("u32", 2)}, mode="canvas")
