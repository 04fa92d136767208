"""Preprocessing against the original: expand to a square with the mean colour, then CLIP's image processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.checkpoints import tiny_spec
from vlmexport.errors import UsageError
from vlmexport.model.pixels import pixel_values, read_image

SPEC = tiny_spec().vision


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def processor(crop: bool) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_center_crop=crop
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 500), st.integers(8, 500))
def test_pad(width: int, height: int) -> None:
    image = picture(width, height)
    side = max(width, height)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    expected = np.asarray(processor(True)(square, return_tensors="np")["pixel_values"])
    assert np.abs(pixel_values(image, SPEC).numpy() - expected).max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(30, 500), st.integers(30, 500))
def test_crop(width: int, height: int) -> None:
    image = picture(width, height)
    expected = np.asarray(processor(True)(image, return_tensors="np")["pixel_values"])
    assert np.abs(pixel_values(image, replace(SPEC, aspect_ratio="crop")).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    name = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    picture(20, 10).convert(mode).save(name)
    image = read_image(name)
    assert image.mode == "RGB"
    assert pixel_values(image, SPEC).shape == (1, 3, 336, 336)


def test_a_photo_stands_upright(tmp_path: Path) -> None:
    image, exif = picture(20, 10), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # held so that it must be turned clockwise
    image.save(tmp_path / "photo.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), upright)


def test_unreadable(tmp_path: Path) -> None:
    picture(200, 100).save(tmp_path / "image.png")
    whole = (tmp_path / "image.png").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "half.png").write_bytes(content)
        with pytest.raises(UsageError, match=r"half\.png cannot be read"):
            read_image(tmp_path / "half.png")
    with pytest.raises(UsageError, match="cannot be read"):
        read_image(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_image(tmp_path / "none.png")
