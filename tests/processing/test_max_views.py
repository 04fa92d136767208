"""A budget of views: by transformers' own sizes no picture has more, and the longest edge is the largest that holds."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

import vlmexport.processing
from tests.processing.test_tiles import Sizes
from vlmexport.checkpoint.spec import ImageProcessorSpec, Size
from vlmexport.errors import UsageError
from vlmexport.processing import canvas, grid
from vlmexport.processing.image import Cutting, cutting
from vlmexport.processing.tiles import most, plan, told, within

GRID = replace(ImageProcessorSpec.tiles(2048, 512, resample=3), mode="grid", do_enlarge=True, add_whole=True)
"""nanoVLM's."""

PUBLISHED = ((2048, 512), (1536, 384), (1456, 364), (216, 72))
"""Longest edge and tile of SmolVLM's sizes, of the class, and of the trained model here."""


def counted(width: int, height: int, spec: ImageProcessorSpec) -> int:
    """Views as transformers' class counts them."""
    said = told(spec)
    if not said["do_image_splitting"]:
        return 1
    found = get_resize_output_image_size(np.broadcast_to(np.uint8(0), (3, height, width)), said["size"]["longest_edge"])
    wide, high = Sizes().resize_for_vision_encoder(np.broadcast_to(np.uint8(0), (3, *found)), spec.side)
    tiles = wide // spec.side * (high // spec.side)
    return tiles + 1 if tiles > 1 else 1


@settings(max_examples=400, deadline=None)
@given(
    width=st.integers(1, 50000), height=st.integers(1, 50000), longest=st.integers(1, 9000), side=st.integers(9, 999),
    views=st.integers(1, 70),
)  # fmt: skip
@example(width=4000, height=1, longest=2048, side=512, views=5)
@example(width=1, height=4000, longest=2048, side=512, views=10)
@example(width=7, height=7, longest=9000, side=333, views=10)
@example(width=50000, height=50000, longest=4097, side=101, views=1)
@example(width=99, height=99, longest=99, side=99, views=2)
def test_no_picture_has_more(width: int, height: int, longest: int, side: int, views: int) -> None:
    spec = within(ImageProcessorSpec.tiles(longest, side), views)
    found = counted(width, height, spec)
    assert found <= (most(spec) or 99) <= views
    assert found == len(plan(height, width, spec).views)


@settings(max_examples=300, deadline=None)
@given(longest=st.integers(1, 9000), side=st.integers(9, 999), views=st.integers(5, 70))
@example(longest=9000, side=333, views=10)
def test_a_longer_edge_would_break_it(longest: int, side: int, views: int) -> None:
    """Of a square, at the next pixel; unless the edge is as it was."""
    known = ImageProcessorSpec.tiles(longest, side)
    edge = within(known, views).size.longest_edge
    assert edge is not None
    if edge < longest:
        assert counted(1, 1, replace(known, size=Size(longest_edge=edge + 1))) > views


@pytest.mark.parametrize(("longest", "side"), PUBLISHED)
def test_published_sizes(longest: int, side: int) -> None:
    known = ImageProcessorSpec.tiles(longest, side)
    assert within(replace(known, do_resize=False), 10) == ImageProcessorSpec.tiles(3 * side, side)
    along = longest // side
    assert most(known) == along**2 + 1
    assert within(known, along**2 + 1) is known
    for views, tiles in ((5, 2), (9, 2), (10, 3), (16, 3)):
        if tiles < along:
            assert within(known, views) == ImageProcessorSpec.tiles(tiles * side, side)
    for views in (1, 2, 4):
        assert within(known, views) == ImageProcessorSpec.tiles(side, side, splits=False)


def test_one_that_cuts_nothing() -> None:
    """Of tiles, its file says so and any budget holds; a square leaves nothing to choose."""
    for resizes in (True, False):
        whole = ImageProcessorSpec.tiles(2048, 512, splits=False, do_resize=resizes)
        assert (most(whole), within(whole, 1)) == (1, whole)
    square = ImageProcessorSpec.square(56, pads=True)
    with pytest.raises(UsageError, match="max_views is 3, but this model sees every picture as one view"):
        cutting(square).within(square, 3)
    assert cutting(square).most(square) == 1


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), tiles=st.integers(1, 20), least=st.integers(1, 4),
    views=st.integers(1, 20),
)  # fmt: skip
@example(width=4000, height=1, tiles=12, least=1, views=7)
@example(width=500, height=500, tiles=12, least=3, views=2)
def test_a_stretched_picture(width: int, height: int, tiles: int, least: int, views: int) -> None:
    """By transformers' processor of what the file says."""
    spec = canvas.within(ImageProcessorSpec.canvas(448, min(least, tiles), tiles), views)
    theirs = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, **canvas.told(spec))
    found = theirs.get_number_of_image_patches(height, width, {})
    assert found == len(canvas.boxes((width, height), spec)) <= canvas.most(spec) <= views
    assert canvas.most(spec) in (views, 1) or tiles < views


def test_every_way_of_cutting_has_one() -> None:
    """All that is asked of a file that cuts pictures."""
    names = {name for name in vars(Cutting) if not name.startswith("_")}
    files = [import_module(f"vlmexport.processing.{one.name}") for one in iter_modules(vlmexport.processing.__path__)]
    found = [file for file in files if hasattr(file, "arrays")]
    assert len(found) >= 3
    for file in found:
        assert [name for name in names if not hasattr(file, name)] == [], file.__name__


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), side=st.sampled_from([64, 256, 384, 448, 512]),
    along=st.integers(1, 8), views=st.integers(3, 70), enlarges=st.booleans(), whole=st.booleans(),
)  # fmt: skip
@example(width=187, height=187, side=512, along=4, views=10, enlarges=True, whole=True)
@example(width=187, height=187, side=512, along=3, views=13, enlarges=True, whole=True)
@example(width=4000, height=1, side=512, along=4, views=5, enlarges=True, whole=True)
def test_a_grid_has_no_more_views(
    width: int, height: int, side: int, along: int, views: int, enlarges: bool, whole: bool
) -> None:
    """By nanoVLM's arithmetic, which rounds: a square of 187 pixels has 4x3 tiles of 512."""
    known = replace(GRID, size=Size(longest_edge=along * side), max_image_size=Size(longest_edge=side))
    known = replace(known, do_enlarge=enlarges, add_whole=whole)
    spec = grid.within(known, views)
    assert len(grid.boxes((width, height), spec)) <= grid.most(spec) <= views
    edges = range(grid.told(spec)["size"]["longest_edge"] + side, along * side + 1, side)
    assert all(grid.most(replace(spec, size=Size(longest_edge=edge))) > views for edge in edges)


def test_a_grid_that_cannot_be_one_view() -> None:
    """Unless the longest edge is a power of two, which rounds nothing."""
    known = replace(GRID, size=Size(longest_edge=1152), max_image_size=Size(longest_edge=384))
    assert len(grid.boxes((187, 187), replace(known, size=Size(longest_edge=384)))) == 3
    assert len(grid.boxes((187, 187), known)) == grid.most(known) - 3
    with pytest.raises(UsageError, match="max_views is 2, and some picture always has 3: pass --max-views 3"):
        grid.within(known, 2)
    found = [grid.most(grid.within(GRID, views)) for views in (1, 4, 5, 12, 13, 16, 17)]
    assert found == [1, 1, 5, 5, 13, 13, 17]
