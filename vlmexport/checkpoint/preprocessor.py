"""How a checkpoint's image processor makes pixels: ``processor_config.json`` or ``preprocessor_config.json``.

Transformers 5 saves it as ``image_processor`` in the former, older versions as the latter. Where both are there,
transformers reads the former, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, read_object, section, whole
from vlmexport.checkpoint.spec import CLIP_MEAN, CLIP_STD, Colour, ImageProcessorSpec
from vlmexport.errors import CheckpointError, Unsupported

_CLIP: dict[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
_PADS = "LlavaImageProcessor"
CLASSES = {"CLIPImageProcessor": _CLIP, _PADS: _CLIP | {"do_pad": False}}
"""Image processors that give one square, and their defaults in transformers. LLaVA's alone pads to a square."""

_WITHOUT_EFFECT = frozenset((
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys",
    "_processor_class", "do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device",
    "disable_grouping", "default_to_square", "model_input_names", "do_pad", "pad_size",
))  # fmt: skip
"""Keys that change nothing of one picture, which comes here as RGB. A CLIP processor pads pictures of a batch."""

_FACTOR, _NEAR = 1 / 255, 1e-7
_CURE = "use the published file"


def read_image_processor(folder: Path) -> ImageProcessorSpec | None:
    """What the image processor of a folder says; None where there is no file of one.

    Raises:
        CheckpointError: a value is garbled.
        Unsupported: a class or a setting of it that is not known.
    """
    path = folder / "processor_config.json"
    found = section(read_object(path), "image_processor", path)
    if not found:
        path = folder / "preprocessor_config.json"
        found = read_object(path)
    if not found:
        return None
    name = _class(found, path)
    _refuse_unknown(found, path)
    try:
        given = {key: value for key, value in found.items() if value is not None}
        return _square(name, CLASSES[name] | given, path)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}", _CURE) from error


def _class(found: dict[str, Any], path: Path) -> str:
    """The class that a file names; CLIP's where it names none, as files of the first years do not."""
    named = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "CLIPImageProcessor")
    name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if name not in CLASSES:
        raise Unsupported(f"{path}: the image processor {named!r} is not known", f"known: {', '.join(CLASSES)}")
    return name


def _refuse_unknown(found: dict[str, Any], path: Path) -> None:
    known = _WITHOUT_EFFECT | set(_CLIP)
    unknown = sorted(key for key, value in found.items() if key not in known and value is not None)
    if unknown:
        raise Unsupported(
            f"{path}: {unknown[0]} {found[unknown[0]]!r} is not known, and may change the pixels",
            f"{_CURE}, or remove the key where it changes nothing",
        )


def _square(name: str, told: dict[str, Any], path: Path) -> ImageProcessorSpec:
    """One view of a picture, as a class of ``CLASSES`` makes it."""
    _refuse(told, path)
    crops = flag(told, "do_center_crop")
    pads = flag(told, "do_pad") and name == _PADS
    side = _side(told["size"], "size")
    if not crops and not pads:
        raise Unsupported(f"{path}: images are neither padded nor cropped", "known: do_pad, or do_center_crop")
    if crops and (middle := _side(told["crop_size"], "crop_size")) != side:
        raise Unsupported(f"{path}: a middle of {middle} pixels is cut out of {side}", "known: crop_size equal to size")
    return ImageProcessorSpec.square(
        side, pads, do_normalize=flag(told, "do_normalize"), image_mean=_colour(told["image_mean"]),
        image_std=_colour(told["image_std"]),
    )  # fmt: skip


def _refuse(told: dict[str, Any], path: Path) -> None:
    known: dict[str, tuple[Callable[[Any], bool], str]] = {
        "do_resize": (lambda value: value is True, "true"),
        "do_rescale": (lambda value: value is True, "true"),
        "rescale_factor": (lambda value: isinstance(value, int | float) and abs(value - _FACTOR) <= _NEAR, "1/255"),
        "resample": (lambda value: value == 3, "3 (bicubic)"),
    }
    for key, (is_known, which) in known.items():
        if not is_known(told[key]):
            raise Unsupported(f"{path}: {key} {told[key]!r} is not known", f"known: {which}")


def _colour(value: Any) -> Colour:
    red, green, blue = (float(part) for part in value)
    return red, green, blue


def _side(value: Any, name: str) -> int:
    """``336``, ``{"shortest_edge": 336}`` or ``{"height": 336, "width": 336}`` → 336.

    Raises:
        ValueError: it is no square.
    """
    sizes = value if isinstance(value, dict) else {"shortest_edge": value}
    given = {key: whole(sizes, key) for key, number in sizes.items() if number is not None}
    if set(given) not in ({"shortest_edge"}, {"height", "width"}) or len(set(given.values())) != 1:
        raise ValueError(f"{name} ({value!r} is no square)")
    return next(iter(given.values()))
