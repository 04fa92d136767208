"""The pixels stage of an ONNX bundle: what its ``preprocessor_config.json`` says, as its clients read it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_bounded
from vlmexport.checkpoint.spec import Colour, ImageProcessorSpec, Size
from vlmexport.errors import CheckpointError

FILE = "preprocessor_config.json"


def read_told(bundle: Path, known: ImageProcessorSpec) -> ImageProcessorSpec:
    """``known`` with what the bundle's clients are told: size, crop or padding, mean and deviation.

    How a client interpolates one square is its own affair; here it is as the float model does. Of tiles the file is the
    checkpoint's own.

    Raises:
        CheckpointError: the file is missing, or says something that we cannot follow.
    """
    path = bundle / FILE
    try:
        told = json.loads(read_bounded(path))
        if known.mode in ("tiles", "grid"):
            return _views(told, known)
        if known.mode == "canvas":
            return _canvas(told, known)
        crops, pads = bool(told.get("do_center_crop")), bool(told.get("do_pad"))
        if crops and pads:
            raise ValueError("it crops and pads")
        side = told["crop_size" if crops else "pad_size" if pads else "size"]
        if not crops and not pads and "height" not in side:
            raise ValueError("it neither crops nor pads")
        if side["width"] != side["height"]:
            raise ValueError("its images are not square")
        square = ImageProcessorSpec.square(int(side["width"]), not crops)
        return replace(
            known,
            size=square.size,
            do_center_crop=crops,
            do_pad=pads,
            do_normalize=bool(told["do_normalize"]),
            image_mean=_colour(told["image_mean"]),
            image_std=_colour(told["image_std"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be followed ({error})", "export the bundle again") from error


def _views(told: dict[str, Any], known: ImageProcessorSpec) -> ImageProcessorSpec:
    """As ``read_told``, of one that cuts several views, which may leave out what is usual."""
    told = asdict(known) | {key: value for key, value in told.items() if value is not None}
    longest, side = (int(told[key]["longest_edge"]) for key in ("size", "max_image_size"))
    if side != known.side or longest < 1:
        raise ValueError(f"its tiles have {side} pixels of {longest}")
    return replace(
        known, size=Size(longest_edge=longest), do_image_splitting=bool(told["do_image_splitting"]),
        do_resize=bool(told["do_resize"]), do_enlarge=bool(told["do_enlarge"]), resample=int(told["resample"]),
        do_normalize=bool(told["do_normalize"]),
        image_mean=_colour(told["image_mean"]), image_std=_colour(told["image_std"]),
    )  # fmt: skip


def _canvas(told: dict[str, Any], known: ImageProcessorSpec) -> ImageProcessorSpec:
    """As ``read_told``, of a file of GOT-OCR 2's, which may leave out what is usual. Whether a picture is cut is not
    for it to say: InternVL's processor cuts whatever the file says."""
    told = asdict(known) | {key: value for key, value in told.items() if value is not None}
    least, most, size = int(told["min_patches"]), int(told["max_patches"]), told["size"]
    if size["height"] != known.side or size["width"] != known.side or not 1 <= least <= most:
        raise ValueError(f"its pictures have {least} to {most} tiles of {size}")
    return replace(
        known, min_patches=least, max_patches=most, do_normalize=bool(told["do_normalize"]),
        image_mean=_colour(told["image_mean"]), image_std=_colour(told["image_std"]),
    )  # fmt: skip


def _colour(values: list[float]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
