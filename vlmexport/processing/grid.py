"""The picture as a whole and square tiles of it, as nanoVLM cuts them.

A picture is resized once, to multiples of a tile, which distorts it a little; that rounds to 8 bits. The whole is made
of the result in floating point, by a triangle filter with antialiasing, and stands before the tiles. A picture that is
no larger than a tile is one view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec, Size
from vlmexport.errors import UsageError
from vlmexport.processing.image import Box
from vlmexport.processing.prompt import Grid
from vlmexport.processing.square import normalise

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """How a picture is cut.

    Attributes:
        size: width and height that it is resized to.
        side: pixels along one side of a view.
        whole: whether the whole is a view, beside tiles.
    """

    size: tuple[int, int]
    side: int
    whole: bool

    @property
    def grid(self) -> Grid:
        """Rows and columns of the squares in it."""
        return self.size[1] // self.side, self.size[0] // self.side


def plan(width: int, height: int, spec: ImageProcessorSpec) -> Plan:
    """How a picture of a size is cut."""
    longest, side = spec.size.longest_edge, spec.side
    assert longest is not None
    edge, other = max(width, height), min(width, height)
    long = longest if spec.do_enlarge else min(longest, ceil(edge / side) * side)
    short = max(ceil(other * (long / edge) / side) * side, side)
    size = (long, short) if width >= height else (short, long)
    return Plan(size, side, spec.add_whole and size != (side, side))


def tiles(size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
    """Rows and columns of the tiles of a picture of this width and height; 0 and 0 where it is one view, the whole."""
    cuts = plan(*size, spec)
    return cuts.grid if cuts.whole or not spec.add_whole else (0, 0)


def most(spec: ImageProcessorSpec) -> int:
    """How many views a picture has at most: those of a square one. nanoVLM's own arithmetic rounds, and gives one a row
    too many now and then, as of 187x187 pixels; where the longest edge is a power of two it never does."""
    longest, side = spec.size.longest_edge, spec.side
    assert longest is not None
    along = longest // side
    squares = along * (along + (longest & (longest - 1) > 0))
    return squares + (spec.add_whole and squares > 1)


def within(spec: ImageProcessorSpec, views: int) -> ImageProcessorSpec:
    """The same with the longest edge as short as it takes for no picture to have more views than so many, the whole
    included, and as long as that allows.

    Args:
        views: at least 1.

    Raises:
        UsageError: even one tile along is too many.
    """
    longest, side = spec.size.longest_edge, spec.side
    assert longest is not None
    if most(spec) <= views:
        return spec
    shorter = [replace(spec, size=Size(longest_edge=edge)) for edge in range(side, longest, side)]
    fits = [one for one in shorter if most(one) <= views]
    if not fits:
        least = min(map(most, shorter), default=most(spec))
        raise UsageError(f"max_views is {views}, and some picture always has {least}", f"pass --max-views {least}")
    return fits[-1]


def told(spec: ImageProcessorSpec) -> dict[str, Any]:
    """The longest edge."""
    return {"size": {"longest_edge": spec.size.longest_edge}}


def arrays(image: Image.Image, spec: ImageProcessorSpec) -> dict[str, F32]:
    """RGB picture of any size → ``pixel_values`` f32 [views, 3, side, side]: the whole, then the tiles row by row."""
    cuts = plan(*image.size, spec)
    pixels, (rows, columns) = normalise(prepared(image, spec), spec)[0], cuts.grid
    cut = pixels.reshape(3, rows, cuts.side, columns, cuts.side).transpose(1, 3, 0, 2, 4)
    views = cut.reshape(-1, 3, cuts.side, cuts.side)
    return {"pixel_values": np.concatenate([_reduced(pixels, cuts.side)[None], views]) if cuts.whole else views}


def prepared(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture of any size → the picture that tiles are cut from, which is cut the same way again."""
    return image.resize(plan(*image.size, spec).size, Image.Resampling(spec.resample))


def boxes(size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[Box, ...]:
    """Which part of a picture of this width and height each view shows, in the order of the views."""
    (width, height), cuts = size, plan(*size, spec)
    rows, columns = cuts.grid
    across, down = width / columns, height / rows
    places = ((row, column) for row in range(rows) for column in range(columns))
    found = tuple((x * across, y * down, (x + 1) * across, (y + 1) * down) for y, x in places)
    return ((0.0, 0.0, float(width), float(height)), *found) if cuts.whole else found


def _reduced(pixels: F32, side: int) -> F32:
    """f32 [3, height, width] → f32 [3, side, side]."""
    size, triangle = (side, side), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(colour).resize(size, triangle)) for colour in pixels])
