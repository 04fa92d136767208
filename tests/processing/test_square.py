"""One square view against transformers' own image processors, which run on Pillow here as ours do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tests.onnx_bundles import picture
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import UsageError
from vlmexport.families.reading.image_processor import CLASSES, read_image_processor
from vlmexport.processing.image import pixel_values, process
from vlmexport.processing.images import read_image
from vlmexport.processing.prompt import Views
from vlmexport.processing.square import prepared

Processor = CLIPImageProcessorPil | LlavaImageProcessorPil
SIDE = 56
ULPS = 2**-21
"""Transformers rescales in float64, we in float32: so far apart at most, of pixels between -2 and 2.2."""

FAST_VLM = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def processors(side: int, **others: object) -> list[Processor]:
    """That of FastVLM and of LLaVA's transformers layout, which crops, and that which pads."""
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return [CLIPImageProcessorPil(**sizes, **others), LlavaImageProcessorPil(do_pad=True, **sizes, **others)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Processor, ImageProcessorSpec]]:
    """Image processors of transformers, each with what we read of the file that it saved."""
    found = []
    crops, pads = processors(SIDE)
    for processor in (crops, pads, processors(SIDE, **FAST_VLM)[0], processors(SIDE, do_normalize=False)[0]):
        folder = tmp_path_factory.mktemp("saved")
        processor.save_pretrained(folder)
        spec = read_image_processor(folder)
        assert spec is not None
        found.append((processor, spec))
    return found


def levels(processor: Processor, image: Image.Image) -> np.ndarray:
    """u8 [height, width, 3]: what transformers makes before it rescales."""
    found = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    return np.asarray(found).transpose(1, 2, 0)


def check(image: Image.Image, pairs: list[tuple[Processor, ImageProcessorSpec]]) -> None:
    for processor, spec in pairs:
        np.testing.assert_array_equal(np.asarray(prepared(image, spec)), levels(processor, image))
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"])
        found = pixel_values(image, spec)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= ULPS


@settings(max_examples=10, deadline=None)
@given(width=st.integers(1, 500), height=st.integers(1, 500), seed=st.integers(0, 99))
@example(width=1, height=1, seed=0)
@example(width=1, height=3000, seed=0)
@example(width=3000, height=1, seed=0)
@example(width=333, height=500, seed=0)
@example(width=1024, height=1024, seed=0)
def test_pictures_of_any_size(
    width: int, height: int, seed: int, pairs: list[tuple[Processor, ImageProcessorSpec]]
) -> None:
    """Every byte of the resized picture is that of transformers."""
    check(picture(seed, (width, height)), pairs)


@pytest.mark.parametrize("pads", [False, True])
def test_fastvlm_at_its_own_size(pads: bool) -> None:
    """Apple's layout pads with black, transformers' crops."""
    processor = processors(1024, **FAST_VLM)[pads]
    spec = ImageProcessorSpec.square(1024, pads, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    check(picture(0, (640, 480)), [(processor, spec)])
    assert spec.background == (0, 0, 0)
    assert (np.asarray(prepared(picture(0, (640, 480)), spec))[0] == 0).all() == pads


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_that_was_held_otherwise(
    orientation: int, pairs: list[tuple[Processor, ImageProcessorSpec]], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture(3, (90, 40)).save(tmp_path / "held.png", exif=exif)
    processor, spec = pairs[1]
    expected = levels(processor, load_image(str(tmp_path / "held.png")))
    np.testing.assert_array_equal(np.asarray(prepared(read_image(tmp_path / "held.png"), spec)), expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pixels_are_torchs_bit_for_bit(seed: int) -> None:
    """Products, differences and quotients of float32 round alike everywhere, as long as their order is the same."""
    spec = ImageProcessorSpec.square(336, pads=True)
    levels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    rgb = torch.from_numpy(levels).float().permute(2, 0, 1) * (1 / 255)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (spec.image_mean, spec.image_std))
    np.testing.assert_array_equal(pixel_values(Image.fromarray(levels), spec)[0], ((rgb - mean) / std).numpy())


def test_a_filter_is_pillows() -> None:
    image, spec = picture(0, (90, 70)), ImageProcessorSpec.square(SIDE, pads=False, resample=2)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE, resample=2)
    np.testing.assert_array_equal(np.asarray(prepared(image, spec)), levels(processor, image))
    assert not np.array_equal(prepared(image, spec), prepared(image, replace(spec, resample=3)))


def test_a_strip_that_would_fill_the_memory_is_named() -> None:
    spec = ImageProcessorSpec.square(1024, pads=False)
    with pytest.raises(UsageError, match=r"a picture of 4000x1 would have 4096000x1024 pixels .*: leave it out"):
        prepared(Image.new("RGB", (4000, 1)), spec)


def test_one_view_and_its_visual_tokens() -> None:
    image = process(picture(0, (90, 70)), ImageProcessorSpec.square(SIDE, pads=True), (4, 2))
    assert image.pixel_values.shape == (1, 3, SIDE, SIDE)
    assert (image.views, image.views.num_tokens) == (Views(((4, 2),)), 8)


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "LlavaImageProcessor"])
def test_defaults_are_those_of_the_classes(name: str) -> None:
    processor = {"CLIPImageProcessor": CLIPImageProcessorPil, "LlavaImageProcessor": LlavaImageProcessorPil}[name]()
    for key, value in CLASSES[name].items():
        found = getattr(processor, key)
        assert (dict(found) if isinstance(value, dict) else found) == value, key
