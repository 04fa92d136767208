"""How a checkpoint's image processor makes pixels: ``processor_config.json`` or ``preprocessor_config.json``.

Transformers 5 saves it as ``image_processor`` in the former, older versions as the latter. Where both are there,
transformers reads the former, and so do we.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, read_object, section, whole
from vlmexport.checkpoint.spec import CLIP_MEAN, CLIP_STD, HALF, Colour, ImageProcessorSpec
from vlmexport.errors import CheckpointError, Unsupported

_CLIP: dict[str, Any] = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
}  # fmt: skip
_TILES: dict[str, Any] = {
    "do_resize": True, "size": {"longest_edge": 1456}, "resample": 1, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": HALF, "image_std": HALF, "do_image_splitting": True,
    "max_image_size": {"longest_edge": 364},
}  # fmt: skip
_CANVAS: dict[str, Any] = {
    "do_resize": True, "size": {"height": 384, "width": 384}, "resample": 3, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    "crop_to_patches": False, "min_patches": 1, "max_patches": 12,
}  # fmt: skip
_MOST = 1024
"""Tiles of a picture: no published model has a tenth of it."""

_STRETCHES = "GotOcr2ImageProcessor"
_PADS, _CUTS = "LlavaImageProcessor", ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
CLASSES = {
    "CLIPImageProcessor": _CLIP, _PADS: _CLIP | {"do_pad": False}, **dict.fromkeys(_CUTS, _TILES), _STRETCHES: _CANVAS,
}  # fmt: skip
"""Image processors and their defaults in transformers. The first two give one square, and LLaVA's alone pads to it."""

_WITHOUT_EFFECT = frozenset((
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys",
    "_processor_class", "do_convert_rgb", "data_format", "input_data_format", "return_tensors", "device",
    "disable_grouping", "default_to_square", "model_input_names", "do_pad", "pad_size", "return_row_col_info",
    "video_sampling",
))  # fmt: skip
"""Keys that change nothing of one picture, which comes here as RGB: most processors pad pictures of a batch alone."""

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
    _refuse_unknown(found, set(CLASSES[name]), path)
    try:
        told = CLASSES[name] | {key: value for key, value in found.items() if value is not None}
        if name == _STRETCHES:
            return _canvas(told, path)
        return _tiles(told, path) if name in _CUTS else _square(name, told, path)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}", _CURE) from error


def _class(found: dict[str, Any], path: Path) -> str:
    """The class that a file names; CLIP's where it names none, as files of the first years do not."""
    named = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "CLIPImageProcessor")
    name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if name not in CLASSES:
        raise Unsupported(f"{path}: the image processor {named!r} is not known", f"known: {', '.join(CLASSES)}")
    return name


def _refuse_unknown(found: dict[str, Any], read: set[str], path: Path) -> None:
    known = _WITHOUT_EFFECT | read
    unknown = sorted(key for key, value in found.items() if key not in known and value is not None)
    if unknown:
        raise Unsupported(
            f"{path}: {unknown[0]} {found[unknown[0]]!r} is not known, and may change the pixels",
            f"{_CURE}, or remove the key where it changes nothing",
        )


def _square(name: str, told: dict[str, Any], path: Path) -> ImageProcessorSpec:
    """One view of a picture, as CLIP's and LLaVA's classes make it."""
    _refuse(told, path, {3: "bicubic"})
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


def _tiles(told: dict[str, Any], path: Path) -> ImageProcessorSpec:
    """Tiles of a picture, as Idefics3's and SmolVLM's classes cut them."""
    _refuse(told, path, {1: "Lanczos", 2: "bilinear", 3: "bicubic"}, may_keep_size=True)
    return ImageProcessorSpec.tiles(
        _edge(told["size"], "size"), _edge(told["max_image_size"], "max_image_size"), flag(told, "do_image_splitting"),
        resample=told["resample"], do_resize=flag(told, "do_resize"), do_normalize=flag(told, "do_normalize"),
        image_mean=_colour(told["image_mean"]), image_std=_colour(told["image_std"]),
    )  # fmt: skip


def _canvas(told: dict[str, Any], path: Path) -> ImageProcessorSpec:
    """Tiles of a picture that is stretched over them, as GOT-OCR 2's class cuts them, which InternVL has."""
    _refuse(told, path, {1: "Lanczos", 2: "bilinear", 3: "bicubic"})
    least, most = whole(told, "min_patches"), whole(told, "max_patches")
    if not 1 <= least <= most <= _MOST:
        raise ValueError(f"min_patches and max_patches ({least} and {most} tiles)")
    return ImageProcessorSpec.canvas(
        _side(told["size"], "size"), least, most, flag(told, "crop_to_patches"), resample=told["resample"],
        do_normalize=flag(told, "do_normalize"), image_mean=_colour(told["image_mean"]),
        image_std=_colour(told["image_std"]),
    )  # fmt: skip


def _refuse(told: dict[str, Any], path: Path, filters: Mapping[int, str], may_keep_size: bool = False) -> None:
    known: dict[str, tuple[Callable[[Any], bool], str]] = {
        "do_resize": (lambda value: value is True or may_keep_size, "true"),
        "do_rescale": (lambda value: value is True, "true"),
        "rescale_factor": (lambda value: isinstance(value, int | float) and abs(value - _FACTOR) <= _NEAR, "1/255"),
        "resample": (
            lambda value: value in filters, ", ".join(f"{number} ({name})" for number, name in filters.items())
        ),
    }  # fmt: skip
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


def _edge(value: Any, name: str) -> int:
    """``{"longest_edge": 512}`` → 512.

    Raises:
        ValueError: it names another size, or one that no picture has.
    """
    sizes = value if isinstance(value, dict) else {}
    given = {key: whole(sizes, key) for key, number in sizes.items() if number is not None}
    if set(given) != {"longest_edge"} or given["longest_edge"] < 1:
        raise ValueError(f"{name} ({value!r} names no longest_edge)")
    return given["longest_edge"]
