"""``preprocessor_config.json``: mean, deviation, and whether an image is padded or cropped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, read_object, section
from vlmexport.errors import CheckpointError, Unsupported

_BICUBIC = 3
_FACTOR, _NEAR = 1 / 255, 1e-7


@dataclass(frozen=True)
class Pixels:
    """How a preprocessor makes pixels; None where it does not say."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    aspect_ratio: str | None = None
    side: int | None = None


def read_pixels(folder: Path) -> Pixels:
    """What the preprocessor of a folder says; nothing where it has none.

    Newer versions of transformers keep it in ``processor_config.json``, under ``image_processor``.

    Raises:
        CheckpointError: a value is no number.
        Unsupported: pixels that would be made otherwise than ``processing/pixels.py`` makes them.
    """
    path = folder / "preprocessor_config.json"
    found: dict[str, Any] | None = read_object(path)
    if not found:
        path = folder / "processor_config.json"
        found = section(read_object(path), "image_processor", path)
    if not found:
        return Pixels()
    _refuse(found, path)
    try:
        return Pixels(
            mean=_colour(found.get("image_mean")),
            std=_colour(found.get("image_std")),
            aspect_ratio="pad" if flag(found, "do_pad") else "crop",
            side=_side(found.get("crop_size")) or _side(found.get("size")),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}", "use the published file") from error


def _refuse(found: dict[str, Any], path: Path) -> None:
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if found.get(key, True) is False:
            raise Unsupported(f"{path}: {key} is false, which is not known", "use the published file")
    factor = found.get("rescale_factor", _FACTOR)
    if not isinstance(factor, int | float) or abs(factor - _FACTOR) > _NEAR:
        raise Unsupported(f"{path}: rescale_factor {factor!r} is not known", "known: 1/255")
    if found.get("resample", _BICUBIC) != _BICUBIC:
        raise Unsupported(f"{path}: resample {found['resample']} is not known", "known: 3 (bicubic)")
    if found.get("do_center_crop", True) is False and not found.get("do_pad"):
        raise Unsupported(f"{path}: images are neither padded nor cropped", "known: do_pad, or do_center_crop")


def _colour(value: Any) -> tuple[float, float, float] | None:
    if value is None:
        return None
    red, green, blue = (float(part) for part in value)
    return red, green, blue


def _side(value: Any) -> int | None:
    """``336``, ``{"shortest_edge": 336}`` or ``{"height": 336, "width": 336}`` → 336."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("height", "shortest_edge", "longest_edge") if value.get(key)), None)
    return None if value is None else int(value)
