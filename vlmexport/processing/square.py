"""One square view of a picture: padded and resized, or resized and its middle cut out, or resized to a square.

As transformers' ``LlavaImageProcessor`` and ``CLIPImageProcessor`` do it, and MobileVLM, LLaVA and the first nanoVLM
in their own code.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import UsageError
from vlmexport.processing.image import Box
from vlmexport.processing.prompt import Grid

F32 = npt.NDArray[np.float32]
_LARGEST = 1 << 28
"""Pixels of a resized picture, before its middle is cut out: a gigabyte in Pillow's memory."""


def arrays(image: Image.Image, spec: ImageProcessorSpec) -> dict[str, npt.NDArray[np.float32]]:
    """RGB picture of any size → ``pixel_values`` f32 [1, 3, height, width]."""
    return {"pixel_values": normalise(prepared(image, spec), spec)}


def boxes(size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[Box, ...]:
    """What is seen of a picture of this width and height: a square around it where it is padded, or in its middle where
    that is cut out, else all of it.

    Raises:
        UsageError: a strip that would become too large before its middle is cut out.
    """
    left, top, (width, height) = 0.0, 0.0, size
    if spec.do_pad:
        left, top = 0.0 - (max(size) - width) // 2, 0.0 - (max(size) - height) // 2
        width = height = max(size)
    if spec.do_center_crop:
        resized = _resized((width, height), spec)
        across, down = width / resized[0], height / resized[1]
        left, top = left + (resized[0] - spec.side) // 2 * across, top + (resized[1] - spec.side) // 2 * down
        return ((left, top, left + spec.side * across, top + spec.side * down),)
    return ((left, top, left + width, top + height),)


def tiles(size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
    """None: 0 and 0."""
    return 0, 0


def most(spec: ImageProcessorSpec) -> int:
    """One view."""
    return 1


def within(spec: ImageProcessorSpec, views: int) -> ImageProcessorSpec:
    """There is nothing to choose.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"max_views is {views}, but this model sees every picture as one view", "leave out --max-views")


def told(spec: ImageProcessorSpec) -> dict[str, Any]:
    """Nothing."""
    return {}


def prepared(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture of any size → what the encoder sees of it, of its size, which clients leave as it is.

    Raises:
        UsageError: a strip that would become too large before its middle is cut out.
    """
    if spec.do_pad:
        image = padded(image, spec)
    size = _resized(image.size, spec)
    image = image if image.size == size else image.resize(size, Image.Resampling(spec.resample))
    return _middle(image, spec.side) if spec.do_center_crop else image


def as_square(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture → the square that the encoder sees of it, as large as it is where it is padded."""
    if image.width == image.height:
        return image
    return padded(image, spec) if spec.do_pad else prepared(image, spec)


def padded(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture → RGB square that holds it in its middle."""
    width, height = image.size
    if width == height:
        return image
    square = Image.new("RGB", (max(width, height),) * 2, spec.background)
    square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
    return square


def normalise(image: Image.Image, spec: ImageProcessorSpec) -> F32:
    """RGB picture of the right size → f32 [1, 3, height, width].

    Every step is one float32 operation. Transformers rescales in float64 or folds both steps, by its backend: results
    differ in the last bit.
    """
    rgb = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) * np.float32(spec.rescale_factor)
    if spec.do_normalize:
        mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.image_mean, spec.image_std))
        rgb = (rgb - mean) / std
    values: F32 = np.ascontiguousarray(rgb[None])
    return values


def _resized(size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[int, int]:
    """Width and height before anything is cut out."""
    width, height = size
    short = spec.size.shortest_edge
    if short is None:
        return spec.side, spec.side
    resized = int(short * width / min(size)), int(short * height / min(size))
    if resized[0] * resized[1] > _LARGEST:
        raise UsageError(
            f"a picture of {width}x{height} would have {resized[0]}x{resized[1]} pixels before its middle is cut out",
            "leave it out, or cut the strip yourself",
        )
    return resized


def _middle(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
