"""Square tiles of a picture and the picture as a whole, as transformers' Idefics3 and SmolVLM cut them.

A picture is resized, enlarged too, to its longest edge, then to multiples of a tile, which distorts it a little. The
whole is made of that in a third step. Each step rounds to 8 bits. Every view is full: no picture needs padding,
and ``pixel_attention_mask`` would be 1 everywhere.

The processor on Pillow (``backend="pil"``) is the one to be equal to: SmolVLM was trained with Pillow's pixels,
llama.cpp computes the same, and a bundle runs without torch. The same processor on torchvision, transformers' default,
rounds otherwise: on pictures by a level or two, on noise by dozens, where Pillow resizes the height first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec, Size
from vlmexport.processing.image import Box
from vlmexport.processing.prompt import Grid
from vlmexport.processing.square import normalise

LARGEST = 4096
"""Pixels of the longest edge after the first step, at most; the class has it fixed."""

Cut = tuple[int, int, int, int]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Plan:
    """How a picture is cut; sizes are width and height.

    Attributes:
        first: what it is resized to.
        second: what that is resized to, and cut.
        side: pixels along one side of a view.
        rows: of tiles; 0 where the second size is the only view.
        columns: of tiles; 0 as well.
    """

    first: tuple[int, int]
    second: tuple[int, int]
    side: int
    rows: int
    columns: int

    @property
    def tiles(self) -> tuple[Cut, ...]:
        """Where the tiles are in the picture of the second size, row by row."""
        side = self.side
        corners = ((column * side, row * side) for row in range(self.rows) for column in range(self.columns))
        return tuple((left, top, left + side, top + side) for left, top in corners)

    @property
    def views(self) -> tuple[Cut, ...]:
        """The same of all views: the tiles, then the whole."""
        return (*self.tiles, (0, 0, *self.second))


def plan(height: int, width: int, spec: ImageProcessorSpec) -> Plan:
    """How a picture of a size is cut."""
    longest, side = spec.size.longest_edge, spec.side
    assert longest is not None
    first = _below(_enlarged(width, height, longest)) if spec.do_resize else (width, height)
    if not spec.do_image_splitting:
        return Plan(first, (side, side), side, 0, 0)
    second = _multiples(*first, side)
    if second == (side, side):
        return Plan(first, second, side, 0, 0)
    return Plan(first, second, side, second[1] // side, second[0] // side)


def tiles(size: tuple[int, int], spec: ImageProcessorSpec) -> Grid:
    """Rows and columns of the tiles of a picture of this width and height; 0 and 0 where it is one view."""
    cuts = plan(*size[::-1], spec)
    return cuts.rows, cuts.columns


def most(spec: ImageProcessorSpec) -> int | None:
    """How many views a picture has at most: a square one, as many tiles down as across, and the whole. None where it is
    cut as large as it is."""
    longest = spec.size.longest_edge
    assert longest is not None
    if spec.do_image_splitting and not spec.do_resize:
        return None
    along = ceil(min(_even(longest), LARGEST) / spec.side)  # an edge that is made even may be the longest
    return along**2 + 1 if spec.do_image_splitting and along > 1 else 1


def within(spec: ImageProcessorSpec, views: int) -> ImageProcessorSpec:
    """The same with the longest edge as short as it takes for no picture to have more views than so many, the whole
    included, and as long as that allows. Of one view nothing is cut out, and its longest edge is its own: clients that
    resize by other filters then do so once.

    Args:
        views: at least 1.
    """
    known, along = most(spec), isqrt(views - 1)
    if known is not None and known <= views:
        return spec
    if along < 2:
        return replace(spec, size=Size(longest_edge=spec.side), do_resize=True, do_image_splitting=False)
    return replace(spec, size=Size(longest_edge=along * spec.side // 2 * 2), do_resize=True)


def told(spec: ImageProcessorSpec) -> dict[str, Any]:
    """The longest edge, and whether a picture is brought to it and cut."""
    longest = {"longest_edge": spec.size.longest_edge}
    return {"size": longest, "do_resize": spec.do_resize, "do_image_splitting": spec.do_image_splitting}


def arrays(image: Image.Image, spec: ImageProcessorSpec) -> dict[str, npt.NDArray[np.float32]]:
    """RGB picture of any size → ``pixel_values`` f32 [views, 3, side, side]: the tiles row by row, then the whole."""
    return {"pixel_values": np.concatenate([normalise(view, spec) for view in views(image, spec)])}


def views(image: Image.Image, spec: ImageProcessorSpec) -> Iterator[Image.Image]:
    """RGB picture of any size → its views, RGB."""
    cuts, whole = plan(image.height, image.width, spec), prepared(image, spec)
    for box in cuts.tiles:
        yield whole.crop(box)
    yield whole.resize((cuts.side, cuts.side), Image.Resampling(spec.resample))


def prepared(image: Image.Image, spec: ImageProcessorSpec) -> Image.Image:
    """RGB picture of any size → the picture of the second size, which tiles are cut from.

    Its own tiles are the same where it is as long as the longest edge: where that is a multiple of a tile.
    """
    cuts, resample = plan(image.height, image.width, spec), Image.Resampling(spec.resample)
    return image.resize(cuts.first, resample).resize(cuts.second, resample)


def boxes(size: tuple[int, int], spec: ImageProcessorSpec) -> tuple[Box, ...]:
    """Which part of a picture of this width and height each view shows, in the order of the views."""
    width, height = size
    cuts = plan(height, width, spec)
    across, down = width / cuts.second[0], height / cuts.second[1]
    scaled = ((left * across, top * down, right * across, bottom * down) for left, top, right, bottom in cuts.views)
    return tuple(scaled)


def _enlarged(width: int, height: int, longest: int) -> tuple[int, int]:
    """The longest edge as said, the other one truncated and made even."""
    aspect = width / height
    if width >= height:
        return longest, max(_even(int(longest / aspect)), 1)
    return max(_even(int(longest * aspect)), 1), longest


def _even(size: int) -> int:
    return size + size % 2


def _below(size: tuple[int, int]) -> tuple[int, int]:
    """No edge longer than ``LARGEST``."""
    width, height = size
    aspect = width / height
    if width >= height and width > LARGEST:
        return LARGEST, max(int(LARGEST / aspect), 1)
    if height > width and height > LARGEST:
        return max(int(LARGEST * aspect), 1), LARGEST
    return size


def _multiples(width: int, height: int, side: int) -> tuple[int, int]:
    """The next multiples of a tile: of the longer edge first, of the other one at that scale."""
    aspect = width / height
    if width >= height:
        long = ceil(width / side) * side
        return long, ceil(int(long / aspect) / side) * side
    long = ceil(height / side) * side
    return ceil(int(long * aspect) / side) * side, long
