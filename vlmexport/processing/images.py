"""Image files → RGB of 8 bits a channel: white stays white, whatever kind of file holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlmexport.checkpoint.substitutes import substitute
from vlmexport.errors import UsageError

_SAVE = "save it as a PNG of 8 bits a channel"
_BITS, _PHOTOMETRIC, _SUBFILE = 258, 262, 254  # TIFF tags
_WHITE_IS_ZERO = 0
_REDUCED = 1  # a TIFF page that is a smaller copy of another
_WHITE = 65535
_BYTE = 255


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, upright: a telephone notes in the file how it was held.

    Grey values of 16 bits (PNG, TIFF, JPEG 2000, PGM) are scaled, 65535 is white; a TIFF of 12 bits has its own white.
    What is transparent shows white, as on a page. Of an animation the first frame counts.

    Raises:
        UsageError: it is missing or no image, it has several pages, or its numbers do not say what is white.
    """
    try:
        with Image.open(path) as image:
            pages = _pages(image)
            if pages > 1:
                raise UsageError(f"image {path} has {pages} pages", "save the one that is meant as a file of its own")
            return rgb(image, f"image {path}")
    except FileNotFoundError as error:
        raise UsageError(f"image {path} does not exist", "check the path") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        what, cure = substitute(path) or (f"cannot be read ({error})", "pass a PNG, JPEG or WebP file")
        raise UsageError(f"image {path} {what}", cure) from error


def rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened image as ``read_image`` gives it.

    Args:
        name: of the image, for the message.

    Raises:
        UsageError: its numbers do not say what is white.
    """
    white = _white(image)
    if white is None and image.mode.startswith(("I", "F")):
        kind = "floats" if image.mode == "F" else "whole numbers of up to 32 bits"
        raise UsageError(f"{name} holds {kind}, and does not say which is white", _SAVE)
    upright = ImageOps.exif_transpose(image)
    return _narrow(upright) if white is None else _from_wide(upright, white, _is_negative(image))


def _white(image: Image.Image) -> int | None:
    """What white is in a grey image of more than 8 bits; None for all others, and where the file does not say."""
    if image.mode == "I" and image.format == "PPM":
        return _WHITE  # Pillow has scaled it
    if not image.mode.startswith("I;16"):
        return None
    if image.format == "TIFF":
        return int((1 << _tags(image).get(_BITS, (16,))[0]) - 1)
    return _WHITE if image.format in ("PNG", "JPEG2000") else None


def _is_negative(image: Image.Image) -> bool:
    """Pillow turns such TIFFs round by itself where they have 8 bits, and leaves them where they have more."""
    return image.format == "TIFF" and _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _from_wide(image: Image.Image, white: int, negative: bool) -> Image.Image:
    """Grey values from 0 to ``white`` as RGB."""
    values = np.asarray(image).astype(np.float64)
    if isinstance(image.info.get("transparency"), int):
        values[values == image.info["transparency"]] = white
    grey = np.rint(values * (_BYTE / white)).clip(0, _BYTE).astype(np.uint8)
    return Image.fromarray(_BYTE - grey if negative else grey).convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel as RGB, on white where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _pages(image: Image.Image) -> int:
    """Pages of a TIFF, without smaller copies of others; 1 for all that is no TIFF."""
    if image.format != "TIFF":
        return 1
    pages = 0
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        pages += not _tags(image).get(_SUBFILE, 0) & _REDUCED
    image.seek(0)
    return pages


def _tags(image: Image.Image) -> Any:
    """A TIFF's tags by number."""
    return getattr(image, "tag_v2", {})
