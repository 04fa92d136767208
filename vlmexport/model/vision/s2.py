"""S²: any encoder on several scales of an image: ``s2:ENCODER``, or ``s2_1_2_3:ENCODER`` for one, two and three.

The image of each scale is cut into tiles of the encoder's own size. The maps of a scale's tiles are put together and
averaged down to the map of the smallest scale, and the scales are concatenated on the channels: wider features, no more
of them. Source: Shi et al. 2024, arXiv:2403.13043; images are preprocessed at the largest scale, as LLaVA does, and
smaller ones made of it with bicubic interpolation.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins

if TYPE_CHECKING:
    import torch
    from torch import nn

PATTERN = r"s2((?:_[1-9])*)"
EXAMPLE = "s2:siglip:tiny"
_SCALES = (1, 2)


def scales(kind: str) -> tuple[int, ...]:
    """Scales that a kind names.

    Raises:
        Unsupported: they do not grow from one.
    """
    match = re.fullmatch(PATTERN, kind)
    found = tuple(int(text) for text in match[1].split("_")[1:]) if match and match[1] else _SCALES
    if found[0] != 1 or list(found) != sorted(set(found)):
        raise Unsupported(f"the scales of {kind} do not grow from 1", "write them like s2_1_2 or s2_1_2_3")
    return found


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """Around the encoder that ``variant`` names as ``kind`` or ``kind:variant``; ``image_size`` is one tile's."""
    factors = scales(kind)
    if not variant:
        raise Unsupported(f"{kind} names no encoder", f"write one behind it, such as {kind}:clip:b16")
    inner, _, of_inner = variant.partition(":")
    spec = plugins.encoder(inner).preset(inner, of_inner, image_size)
    return replace(
        spec,
        kind=kind,
        variant=f"{spec.kind}:{spec.variant}" if spec.variant else spec.kind,
        image_size=spec.image_size * factors[-1],
        patch_size=spec.patch_size * factors[-1],
        hidden_size=spec.hidden_size * len(factors),
    )


def wrapped(spec: VisionSpec) -> VisionSpec:
    """The Spec of the encoder inside."""
    factors = scales(spec.kind)
    kind, _, variant = spec.variant.partition(":")
    return replace(
        spec,
        kind=kind,
        variant=variant,
        image_size=spec.image_size // factors[-1],
        patch_size=spec.patch_size // factors[-1],
        hidden_size=spec.hidden_size // len(factors),
    )


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """As inside."""
    inner = wrapped(spec)
    return plugins.vision(inner).colours(inner)


def layers(spec: VisionSpec) -> str | None:
    """As inside."""
    inner = wrapped(spec)
    return plugins.vision(inner).layers(inner)


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """As inside."""
    inner = wrapped(spec)
    return plugins.vision(inner).unused(inner)


def build(spec: VisionSpec) -> nn.Module:
    """The encoder inside: the wrapper has no weights, so all tensor names are the encoder's."""
    inner = wrapped(spec)
    return plugins.vision(inner).build(inner)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """f32 [views, 3, height, width] at the largest scale → [views, patches, width of all scales].

    All tiles of all scales go through the encoder as one batch.
    """
    import torch
    from torch.nn import functional

    if spec.select_feature != "patch":
        raise Unsupported(f"s2 joins maps, select_feature is {spec.select_feature!r}", "use patch")
    inner, factors = wrapped(spec), scales(spec.kind)
    tiles = []
    for factor in factors:
        size = factor * inner.image_size
        whole = size == spec.image_size
        image = pixel_values if whole else functional.interpolate(pixel_values, [size, size], mode="bicubic")
        tiles.append(_cut(image, factor))
    found = plugins.vision(inner).features(module, torch.cat(tiles).flatten(0, 1), inner)
    counts = [factor**2 for factor in factors]
    parts = torch.split(torch.unflatten(found, 0, (sum(counts), -1)), counts)
    maps = [_joined(part, factor, inner.grid) for part, factor in zip(parts, factors, strict=True)]
    small = [functional.avg_pool2d(x, factor) for x, factor in zip(maps, factors, strict=True)]
    return torch.cat(small, 1).flatten(2).transpose(1, 2)


def _cut(image: torch.Tensor, factor: int) -> torch.Tensor:
    """f32 [views, 3, side, side] → [factor², views, 3, side / factor, side / factor], row by row."""
    import torch

    squares = torch.unflatten(torch.unflatten(image, 3, (factor, -1)), 2, (factor, -1))
    return squares.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)


def _joined(part: torch.Tensor, factor: int, grid: int) -> torch.Tensor:
    """f32 [factor², views, grid², width] → [views, width, factor · grid, factor · grid]."""
    import torch

    rows = torch.unflatten(torch.unflatten(part, 2, (grid, grid)), 0, (factor, factor))
    return rows.permute(2, 5, 0, 3, 1, 4).flatten(4, 5).flatten(2, 3)
