"""Tiles of a picture that is stretched over a grid of them, then the picture as a whole, as InternVL sees it.

The grid is the one whose shape is nearest to the picture's. The picture is stretched to it, without padding, and cut.
The whole is made of the original, and is left out where there is one tile only. It is what transformers'
``GotOcr2ImageProcessor`` does on Pillow, and OpenGVLab in its own code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.processing.image import Box
from vlmexport.processing.prompt import Grid
from vlmexport.processing.square import normalise


def grid(size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
    """Rows and columns that a picture of this width and height is stretched over.

    Of grids of the same distance, one of more tiles is taken as long as they cover less than twice the picture.
    """
    if not spec.do_image_splitting or spec.max_patches <= 1:
        return 1, 1
    width, height = size
    aspect, found, nearest = width / height, (1, 1), float("inf")
    for columns, rows in _grids(spec.min_patches, spec.max_patches):
        distance = abs(aspect - columns / rows)
        more = distance == nearest and width * height > 0.5 * spec.side * spec.side * columns * rows
        if distance < nearest or more:
            found, nearest = (rows, columns), distance
    return found


@lru_cache(maxsize=16)
def _grids(least: int, most: int) -> tuple[Grid, ...]:
    """Columns and rows of all grids of so many tiles: few tiles first, narrow ones first among equals."""
    found = [
        (columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)
        if columns * rows >= least
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: one[0] * one[1]))


def tiles(size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
    """Rows and columns of the tiles of a picture of this width and height; 0 and 0 where it is one view."""
    found = grid(size, spec)
    return (0, 0) if found == (1, 1) else found


def most(spec: ImageProcessorSpec) -> int:
    """How many views a picture has at most: all tiles, and the whole."""
    return spec.max_patches + 1 if spec.do_image_splitting and spec.max_patches > 1 else 1


def within(spec: ImageProcessorSpec, views: int) -> ImageProcessorSpec:
    """The same with so few tiles that no picture has more views than so many, the whole included.

    Args:
        views: at least 1.
    """
    if most(spec) <= views:
        return spec
    tiles = max(views - 1, 1)
    return replace(spec, max_patches=tiles, min_patches=min(spec.min_patches, tiles))


def told(spec: ImageProcessorSpec) -> dict[str, Any]:
    """The bounds of tiles. Whether a picture is cut at all InternVL's processor says itself, whatever the file does."""
    return {"min_patches": spec.min_patches, "max_patches": spec.max_patches}


def arrays(image: Image.Image, spec: ImageProcessorSpec) -> dict[str, npt.NDArray[np.float32]]:
    """RGB picture of any size → ``pixel_values`` f32 [views, 3, side, side]: the tiles row by row, then the whole."""
    return {"pixel_values": np.concatenate([normalise(view, spec) for view in views(image, spec)])}


def views(image: Image.Image, spec: ImageProcessorSpec) -> Iterator[Image.Image]:
    """RGB picture of any size → its views, RGB."""
    rows, columns = grid(image.size, spec)
    side, stretched = spec.side, prepared(image, spec)
    for row in range(rows):
        for column in range(columns):
            yield stretched.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
    if rows * columns > 1:
        yield image.resize((side, side), Image.Resampling(spec.resample))


def prepared(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture of any size → the picture that tiles are cut from.

    Its own tiles are the same. The whole is not: it is made of a picture that was resized before.
    """
    rows, columns = grid(image.size, spec)
    return image.resize((columns * spec.side, rows * spec.side), Image.Resampling(spec.resample))


def boxes(size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[Box, ...]:
    """Which part of a picture of this width and height each view shows, in the order of the views."""
    (rows, columns), (width, height) = grid(size, spec), size
    found = [
        (column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return tuple(found) if len(found) == 1 else (*found, (0.0, 0.0, float(width), float(height)))
