"""The pixels stage: an RGB image to normalised pixel values, as MobileVLM does it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import VisionSpec

F32 = npt.NDArray[np.float32]


def background(spec: VisionSpec) -> tuple[int, int, int]:
    """The mean colour that pads an image to a square, 8 bits a channel."""
    red, green, blue = (int(255 * mean) for mean in spec.image_mean)
    return red, green, blue


def padded(image: Image.Image, spec: VisionSpec) -> Image.Image:
    """RGB image → RGB square that holds it in its middle."""
    width, height = image.size
    if width == height:
        return image
    square = Image.new("RGB", (max(width, height),) * 2, background(spec))
    square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
    return square


def to_size(image: Image.Image, spec: VisionSpec) -> Image.Image:
    """RGB image → RGB image of ``image_size`` squared: pad then resize, or resize the short side then crop."""
    side = spec.image_size
    width, height = image.size
    if spec.aspect_ratio == "pad":
        image = padded(image, spec)
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)
    short = min(width, height)
    size = (int(side * width / short), int(side * height / short))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return image.crop((left, top, left + side, top + side))


def square(image: Image.Image, spec: VisionSpec) -> Image.Image:
    """RGB image → the square that the model sees of it, as large as it is where it is padded."""
    if image.width == image.height:
        return image
    return padded(image, spec) if spec.aspect_ratio == "pad" else to_size(image, spec)


def normalise(image: Image.Image, spec: VisionSpec) -> F32:
    """RGB image of the right size → f32 [1, 3, height, width], by the encoder's own mean and deviation.

    Every step is one float32 operation, in the order of transformers' image processors.
    """
    rgb = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) * np.float32(1 / 255)
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.image_mean, spec.image_std))
    values: F32 = np.ascontiguousarray(((rgb - mean) / std)[None])
    return values


def pixel_values(image: Image.Image, spec: VisionSpec) -> F32:
    """RGB image of any size → f32 [1, 3, height, width]."""
    return normalise(to_size(image, spec), spec)
