"""Tiles against transformers' own image processors, which run on Pillow here as ours do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict, load_image
from transformers.models.idefics3.image_processing_pil_idefics3 import (
    Idefics3ImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.onnx_bundles import picture
from vlmexport.artifact.bundle.source import ImageProcessor
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.image_processor import CLASSES, read_image_processor
from vlmexport.processing.image import pixel_values, process
from vlmexport.processing.images import read_image
from vlmexport.processing.prompt import Views
from vlmexport.processing.tiles import Plan, most, plan, prepared, views

Processor = Idefics3ImageProcessorPil
SIZES = [
    (1, 1), (4000, 1), (1, 4000), (500, 333), (512, 512), (512, 513), (640, 480), (2048, 2048), (64, 64),
]  # fmt: skip
"""Width and height."""

ULPS = 2**-22
"""Transformers rescales in float64, we in float32: so far apart at most, of pixels between -1 and 1."""

LEVELS, SHARE = 3, 0.03
"""By how many levels of 255, and in which share of pixels, torchvision differs from Pillow at most on smooth pictures.
On noise it is up to 39 where Pillow resizes the height first, which torchvision never does."""


def processor(longest: int = 256, side: int = 64, **others: object) -> Processor:
    return Idefics3ImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": side}, **others)


def read(saved: Processor, folder: Path) -> ImageProcessorSpec:
    saved.save_pretrained(folder)
    spec = read_image_processor(folder)
    assert spec is not None
    return spec


def stacked(image: Image.Image, spec: ImageProcessorSpec) -> npt.NDArray[np.uint8]:
    """u8 [views, side, side, 3]."""
    return np.stack([np.asarray(view) for view in views(image, spec)])


def check(image: Image.Image, theirs: Processor, spec: ImageProcessorSpec) -> Plan:
    """Every byte of every view, its order, the floats, rows and columns, and that no view is padded."""
    assert theirs.backend == "pil"
    made = theirs([image], return_row_col_info=True, return_tensors="np")
    expected, pixels = np.asarray(made["pixel_values"][0]), pixel_values(image, spec)
    cuts = plan(image.height, image.width, spec)
    np.testing.assert_array_equal(stacked(image, spec), np.rint((expected + 1) * 127.5).transpose(0, 2, 3, 1))
    assert (cuts.rows, cuts.columns) == (made["rows"][0][0], made["cols"][0][0])
    assert made["pixel_attention_mask"].all()
    assert (pixels.dtype, pixels.shape) == (np.float32, expected.shape)
    assert np.abs(pixels - expected).max() <= ULPS
    return cuts


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_known_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = processor()
    assert check(picture(3, size), theirs, read(theirs, tmp_path)).rows


@pytest.mark.parametrize("size", [(1, 1), (500, 333), (1, 400), (64, 64)])
def test_a_picture_that_is_not_split(size: tuple[int, int], tmp_path: Path) -> None:
    theirs = processor(do_image_splitting=False)
    assert check(picture(3, size), theirs, read(theirs, tmp_path)).views == ((0, 0, 64, 64),)


def test_published_sizes(tmp_path: Path) -> None:
    """SmolVLM's with 384 pixels, and with 512."""
    theirs = SmolVLMImageProcessorPil(size={"longest_edge": 1536}, max_image_size={"longest_edge": 384})
    cuts = check(picture(5, (640, 480)), theirs, read(theirs, tmp_path))
    assert (cuts.first, cuts.rows, cuts.columns) == ((1536, 1152), 3, 4)
    assert len(plan(999, 999, ImageProcessorSpec.tiles(2048, 512)).views) == 17


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), side=st.integers(30, 70), splits=st.booleans())
@example(width=1, height=1, side=64, splits=True)
@example(width=64, height=64, side=64, splits=True)
@example(width=65, height=64, side=64, splits=True)
@example(width=1, height=700, side=64, splits=True)
@example(width=300, height=20, side=64, splits=False)
def test_a_picture_that_is_cut_as_large_as_it_is(
    width: int, height: int, side: int, splits: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs = processor(side=side, do_resize=False, do_image_splitting=splits)
    spec = read(theirs, tmp_path_factory.mktemp("saved"))
    image = picture(width, (width, height))
    assert check(image, theirs, spec).first == (width, height)
    assert (most(spec) is None) is splits
    np.testing.assert_array_equal(stacked(prepared(image, spec), spec), stacked(image, spec))


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), longest=st.integers(20, 200), side=st.integers(16, 70))
@example(width=17, height=40, longest=70, side=70)
def test_pictures_of_any_size(
    width: int, height: int, longest: int, side: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs = processor(longest, side)
    check(picture(width, (width, height)), theirs, read(theirs, tmp_path_factory.mktemp("saved")))


class Sizes(Idefics3ImageProcessorPil):
    """Tells to what size it would resize, and resizes nothing."""

    def resize(self, image: object, size: SizeDict, **others: object) -> tuple[int, int]:
        return size.width, size.height


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 50000), height=st.integers(1, 50000), longest=st.integers(1, 9000), side=st.integers(99, 999)
)
@example(width=50000, height=1, longest=9000, side=384)
@example(width=1, height=50000, longest=4097, side=101)
@example(width=2047, height=2048, longest=2048, side=512)
def test_sizes_alone(width: int, height: int, longest: int, side: int) -> None:
    """Of any picture, where pixels would take too much time."""
    cuts = plan(height, width, ImageProcessorSpec.tiles(longest, side))
    found = get_resize_output_image_size(np.broadcast_to(np.uint8(0), (3, height, width)), longest)
    assert cuts.first == found[::-1]
    assert cuts.second == Sizes().resize_for_vision_encoder(np.broadcast_to(np.uint8(0), (3, *found)), side)
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in cuts.tiles)
    assert covered in (0, cuts.second[0] * cuts.second[1])
    assert len(cuts.views) == len(set(cuts.views)) == cuts.rows * cuts.columns + 1


def test_one_view_where_the_longest_edge_is_a_tile(tmp_path: Path) -> None:
    theirs = processor(64, 64)
    for size in ((640, 480), (20, 50), (64, 64)):
        assert check(picture(1, size), theirs, read(theirs, tmp_path)).rows == 0


def test_a_picture_that_was_held_otherwise(tmp_path: Path) -> None:
    """12 megapixels of a telephone's camera, held upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture(3, (4032, 3024)).save(tmp_path / "held.jpg", exif=exif)
    theirs = processor()
    spec, file = read(theirs, tmp_path), tmp_path / "held.jpg"
    image = read_image(file)
    assert image.tobytes() == load_image(str(file)).tobytes()
    assert (image.size, check(image, theirs, spec).rows) == ((3024, 4032), 4)


@pytest.mark.parametrize("size", [(640, 480), (300, 471), (700, 900)])
def test_torchvision_rounds_otherwise(size: tuple[int, int], tmp_path: Path) -> None:
    """The same processor as transformers opens it by default has the same views, with some levels a little off."""
    spec = read(processor(512, 128), tmp_path)
    default = AutoImageProcessor.from_pretrained(tmp_path)
    assert default.backend == "torchvision"
    expected = default([picture(2, size)], return_tensors="np")["pixel_values"][0]
    off = np.abs(np.asarray(expected) - pixel_values(picture(2, size), spec)) * 127.5
    assert off.max() <= LEVELS + 0.01
    assert (off > 0.5).mean() <= SHARE


def test_a_filter_is_pillows(tmp_path: Path) -> None:
    theirs = processor(resample=3)
    spec = read(theirs, tmp_path)
    check(picture(0, (90, 70)), theirs, spec)
    assert not np.array_equal(stacked(picture(0), spec), stacked(picture(0), replace(spec, resample=1)))


def test_a_manifest_holds_it() -> None:
    as_it_is = ImageProcessorSpec.tiles(2048, 512, do_resize=False)
    for spec in (ImageProcessorSpec.tiles(2048, 512), as_it_is, ImageProcessorSpec.square(56, pads=True)):
        written = ImageProcessor.of(spec).model_dump_json()
        assert ImageProcessor.model_validate_json(written).spec() == spec


def test_views_and_their_visual_tokens() -> None:
    spec = ImageProcessorSpec.tiles(256, 64)
    image = process(picture(0, (90, 40)), spec, (4, 2))
    assert image.pixel_values.shape == (9, 3, 64, 64)
    assert (image.views, image.views.num_tokens) == (Views(((4, 2),) * 9, (2, 4)), 72)


@pytest.mark.parametrize("name", ["Idefics3ImageProcessor", "SmolVLMImageProcessor"])
def test_defaults_are_those_of_the_classes(name: str) -> None:
    theirs = {"Idefics3ImageProcessor": Idefics3ImageProcessorPil, "SmolVLMImageProcessor": SmolVLMImageProcessorPil}
    for key, value in CLASSES[name].items():
        found = getattr(theirs[name](), key)
        assert (
            dict(found) if isinstance(value, dict) else tuple(found) if isinstance(value, tuple) else found
        ) == value


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"do_resize": "false"}, "do_resize .* is neither true nor false"),
        ({"resample": 0}, r"resample 0 is not known: known: 1 \(Lanczos\), 2"),
        ({"size": {"height": 3, "width": 3}}, "size .* names no longest_edge"),
        ({"size": {"longest_edge": 2048, "shortest_edge": 5}}, "size .* names no longest_edge"),
        ({"do_image_splitting": "false"}, "do_image_splitting .* is neither true nor false"),
        ({"max_image_size": {"longest_edge": 0}}, "max_image_size .* names no longest_edge"),
        ({"min_image_size": 3}, "min_image_size 3 is not known, and may change the pixels"),
    ],
)
def test_what_is_not_known_is_refused(others: dict[str, object], message: str, tmp_path: Path) -> None:
    file = {"image_processor_type": "SmolVLMImageProcessorFast"} | others
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    with pytest.raises((CheckpointError, Unsupported), match=message):
        read_image_processor(tmp_path)
