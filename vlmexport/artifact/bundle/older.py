"""Manifests of older versions: what they say of a model, as this version says it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmexport.checkpoint.spec import ImageProcessorSpec

_COLOURS = ("image_mean", "image_std")


def apart(spec: dict[str, Any]) -> dict[str, Any]:
    """A Spec whose image processor stands by itself. It was part of the vision encoder: mean, deviation, and whether
    pictures are padded."""
    vision = spec.get("vision")
    if "image_processor" in spec or not isinstance(vision, dict) or "image_size" not in vision:
        return spec
    kept = {key: value for key, value in vision.items() if key not in (*_COLOURS, "aspect_ratio")}
    pads = vision.get("aspect_ratio", "pad") == "pad"
    pixels = ImageProcessorSpec.square(
        vision["image_size"], pads, **{key: vision[key] for key in _COLOURS if key in vision}
    )
    return spec | {"vision": kept, "image_processor": asdict(pixels)}
