"""InternVL's grids and tiles against transformers' own image processor, which runs on Pillow here as ours does."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_all_supported_aspect_ratios,
    get_optimal_tiled_canvas,
)

from tests.onnx_bundles import picture
from vlmexport.artifact.bundle.source import ImageProcessor
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.image_processor import CLASSES, read_image_processor
from vlmexport.processing.canvas import boxes, grid, prepared, tiles, views
from vlmexport.processing.image import pixel_values, process
from vlmexport.processing.image_processor import read_told
from vlmexport.processing.prompt import Grid, Views

SIDE = 32
SIZES: dict[tuple[int, int], Grid] = {
    (32, 32): (1, 1), (45, 45): (1, 1), (46, 46): (2, 2), (67, 67): (2, 2), (68, 68): (3, 3), (500, 500): (3, 3),
    (64, 32): (1, 2), (31, 64): (2, 1), (91, 45): (1, 2), (128, 64): (2, 4), (30, 40): (4, 3), (7, 5): (3, 4),
    (1000, 10): (1, 12), (10, 1000): (12, 1), (1, 1): (1, 1), (4000, 1): (1, 12), (1, 4000): (12, 1), (80, 60): (3, 4),
    (96, 64): (2, 3), (33, 32): (1, 1), (320, 240): (3, 4), (48, 64): (4, 3), (640, 360): (2, 4), (75, 90): (4, 3),
}  # fmt: skip
"""Width and height → rows and columns of at most 12 tiles of 32 pixels: ties of squares and of 1:2 by area, extreme
shapes, smaller than a tile, exactly one, exactly several."""

ULPS = 2**-20
"""Transformers rescales in float64, we in float32: so far apart at most, of pixels between -3 and 3."""


def processor(side: int = SIDE, **others: Any) -> GotOcr2ImageProcessorPil:
    """As InternVL's processor calls it."""
    return GotOcr2ImageProcessorPil(size={"height": side, "width": side}, **{"crop_to_patches": True} | others)


def read(saved: GotOcr2ImageProcessorPil, folder: Path) -> ImageProcessorSpec:
    saved.save_pretrained(folder)
    spec = read_image_processor(folder)
    assert spec is not None
    return spec


def check(image: Image.Image, theirs: GotOcr2ImageProcessorPil, spec: ImageProcessorSpec) -> None:
    """Every byte of every view, their order and number, and the floats."""
    assert theirs.backend == "pil"
    levels = theirs([image], do_normalize=False, do_rescale=False, return_tensors="np")
    ours = np.stack([np.asarray(view) for view in views(image, spec)])
    np.testing.assert_array_equal(ours.transpose(0, 3, 1, 2), levels["pixel_values"])
    expected, pixels = theirs([image], return_tensors="np"), pixel_values(image, spec)
    assert pixels.dtype == np.float32
    assert pixels.shape == expected["pixel_values"].shape
    assert np.abs(pixels - expected["pixel_values"]).max() <= ULPS
    assert len(boxes(image.size, spec)) == len(pixels) == expected["num_patches"][0]
    assert len(pixels) == theirs.get_number_of_image_patches(image.height, image.width)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_known_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = processor()
    spec = read(theirs, tmp_path)
    check(picture(3, size), theirs, spec)
    assert grid(size, spec) == SIZES[size]
    assert tiles(size, spec) == ((0, 0) if SIZES[size] == (1, 1) else SIZES[size])


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 600), height=st.integers(1, 600), side=st.integers(5, 60), least=st.integers(1, 5),
    more=st.integers(0, 12),
)  # fmt: skip
@example(width=50, height=80, side=20, least=4, more=0)
def test_pictures_of_any_size(
    width: int, height: int, side: int, least: int, more: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs = processor(side, min_patches=least, max_patches=least + more)
    check(picture(width, (width, height)), theirs, read(theirs, tmp_path_factory.mktemp("saved")))


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 5000), height=st.integers(1, 5000), side=st.integers(1, 500), least=st.integers(1, 20),
    more=st.integers(0, 40),
)  # fmt: skip
@example(width=5000, height=1, side=448, least=1, more=11)
@example(width=1344, height=1344, side=448, least=1, more=11)
def test_grids_alone(width: int, height: int, side: int, least: int, more: int) -> None:
    """Of any picture, where pixels would take too much time."""
    spec = ImageProcessorSpec.canvas(side, least, least + more)
    columns, rows = get_optimal_tiled_canvas((height, width), (side, side), least, least + more)
    assert grid((width, height), spec) == ((rows, columns) if spec.max_patches > 1 else (1, 1))


@settings(max_examples=300, deadline=None)
@given(share=st.fractions(0, 20), scale=st.integers(1, 40), most=st.integers(2, 40), side=st.sampled_from([14, 448]))
@example(share=1, scale=40, most=12, side=14)
def test_ties_of_all_kinds(share: Any, scale: int, most: int, side: int) -> None:
    """Pictures of a small fraction's shape, of which several grids are as near."""
    width, height = max(share.numerator, 1) * scale, share.denominator * scale
    columns, rows = get_optimal_tiled_canvas((height, width), (side, side), 1, most)
    assert grid((width, height), ImageProcessorSpec.canvas(side, 1, most)) == (rows, columns)


@pytest.mark.parametrize("most", range(1, 41))
def test_the_order_of_equal_grids_does_not_matter(most: int) -> None:
    """OpenGVLab's own code takes grids of as many tiles in the order of a set. From one tile on, no two of them are
    neighbours by their shape, so none is as near as the other: another grid lies between."""
    shapes: dict[float, set[int]] = {}
    for columns, rows in get_all_supported_aspect_ratios(1, most):
        shapes.setdefault(columns / rows, set()).add(columns * rows)
    in_order = [shapes[shape] for shape in sorted(shapes)]
    assert sum(map(len, in_order)) == len(get_all_supported_aspect_ratios(1, most))
    for one, other in pairwise(in_order):
        assert not one & other


def test_a_picture_that_is_not_cut(tmp_path: Path) -> None:
    """Where the processor of a model does not say that it is, and where one tile is allowed."""
    for others in ({"crop_to_patches": False}, {"max_patches": 1}):
        theirs = processor(**others)
        spec = read(theirs, tmp_path)
        check(picture(1, (90, 40)), theirs, spec)
        assert boxes((90, 40), spec) == ((0, 0, 90, 40),)


def test_published_sizes(tmp_path: Path) -> None:
    theirs = processor(448)
    spec = read(theirs, tmp_path)
    check(picture(5, (640, 480)), theirs, spec)
    image = process(picture(5, (640, 480)), spec, (16, 16))
    assert image.views == Views(((16, 16),) * 13, (3, 4))
    assert image.views.num_tokens == 3328


def test_a_prepared_picture_has_the_same_tiles() -> None:
    """And a whole that was resized twice."""
    spec = ImageProcessorSpec.canvas(SIDE)
    image = picture(2, (300, 200))
    once, twice = pixel_values(image, spec), pixel_values(prepared(image, spec), spec)
    np.testing.assert_array_equal(once[:-1], twice[:-1])
    assert 0 < np.abs(once[-1] - twice[-1]).max() < 0.2


def test_torchvision_rounds_otherwise(tmp_path: Path) -> None:
    """The same processor as transformers opens it by default has the same views, with some levels one off."""
    spec = read(processor(64), tmp_path)
    default = AutoImageProcessor.from_pretrained(tmp_path)
    assert default.backend == "torchvision"
    expected = default([picture(2, (640, 480))], return_tensors="np")["pixel_values"]
    off = np.abs(np.asarray(expected) - pixel_values(picture(2, (640, 480)), spec)) * 255 * min(spec.std)
    assert off.max() <= 1.1
    assert (off > 0.5).mean() <= 0.02


def test_a_manifest_holds_it() -> None:
    spec = ImageProcessorSpec.canvas(448, 2, 6)
    assert ImageProcessor.model_validate_json(ImageProcessor.of(spec).model_dump_json()).spec() == spec


def test_what_a_bundle_tells_its_clients(tmp_path: Path) -> None:
    """The file says that nothing is cut, as InternVL's do; its processor cuts."""
    known = ImageProcessorSpec.canvas(448)
    processor(448, crop_to_patches=False, max_patches=5, image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    found = read_told(tmp_path, known)
    assert (found.max_patches, found.image_mean, found.do_image_splitting) == (5, (0.1, 0.2, 0.3), True)
    processor(336).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="its pictures have 1 to 12 tiles of"):
        read_told(tmp_path, known)


def test_defaults_are_those_of_the_class() -> None:
    for key, value in CLASSES["GotOcr2ImageProcessor"].items():
        found = getattr(GotOcr2ImageProcessorPil(), key)
        assert (
            dict(found) if isinstance(value, dict) else tuple(found) if isinstance(value, tuple) else found
        ) == value


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"do_resize": False}, "do_resize False is not known"),
        ({"resample": 0}, r"resample 0 is not known: known: 1 \(Lanczos\), 2"),
        ({"size": {"height": 3, "width": 4}}, "size .* is no square"),
        ({"min_patches": 0}, "min_patches and max_patches .0 and 12 tiles."),
        ({"min_patches": 7, "max_patches": 6}, "min_patches and max_patches .7 and 6 tiles."),
        ({"max_patches": 100000}, "min_patches and max_patches .1 and 100000 tiles."),
        ({"crop_to_patches": "yes"}, "crop_to_patches .* is neither true nor false"),
        ({"use_thumbnail": False}, "use_thumbnail False is not known, and may change the pixels"),
    ],
)
def test_what_is_not_known_is_refused(others: dict[str, object], message: str, tmp_path: Path) -> None:
    file = {"image_processor_type": "GotOcr2ImageProcessorFast"} | others
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    with pytest.raises((CheckpointError, Unsupported), match=message):
        read_image_processor(tmp_path)
