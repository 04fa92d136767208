"""The Specs of FastVLM's tower and projector, whichever layout they are published in."""

from __future__ import annotations

from typing import Any

from vlmexport.checkpoint.fastvit import SIZES, variant_of
from vlmexport.checkpoint.spec import LanguageSpec, ProjectorSpec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.published import Published
from vlmexport.families.reading.vision import check_side

_STRIDE = 64
"""Pixels along one side of what becomes one feature."""

_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def tower(published: Published, side: int, aspect_ratio: str, width: Any) -> VisionSpec:
    """FastViT, of the size that its tensors have; pixels from 0 to 1 where no preprocessor says otherwise.

    Args:
        side: pixels along one side of an image.
        aspect_ratio: ``pad`` or ``crop``.
        width: of the features, as the config says it; None where it does not.

    Raises:
        CheckpointError: config and tensors differ, or the preprocessor makes images of another size.
        Unsupported: a size that is not known, or images that do not divide.
    """
    variant = variant_of(published.shapes["vision"], str(published.path))
    features = SIZES[variant].features
    if width not in (None, features):
        raise CheckpointError(
            f"{published.file}: features are {width} wide, the tensors say {features}",
            "config and weights belong to different models: fix one of them",
        )
    if side < _STRIDE or side % _STRIDE:
        raise Unsupported(f"{published.path}: images of {side} pixels do not divide", f"known: multiples of {_STRIDE}")
    pixels = published.pixels
    spec = VisionSpec(
        "fastvit", side, _STRIDE, features, 0, 0, 0, "gelu", image_mean=pixels.mean or _ZERO,
        image_std=pixels.std or _ONE, select_layer=0, aspect_ratio=aspect_ratio, variant=variant,
    )  # fmt: skip
    check_side(spec, pixels, published.path)
    return spec


def projector(encoder: VisionSpec, decoder: LanguageSpec, kind: str) -> ProjectorSpec:
    """From features to visual tokens."""
    return ProjectorSpec(kind, encoder.hidden_size, decoder.hidden_size, encoder.num_patches)
