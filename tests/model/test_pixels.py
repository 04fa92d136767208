"""Preprocessing against the original: expand to a square with the mean colour, then CLIP's image processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.checkpoints import tiny_spec
from vlmexport.processing.pixels import pixel_values

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
    assert np.abs(pixel_values(image, SPEC) - expected).max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(30, 500), st.integers(30, 500))
def test_crop(width: int, height: int) -> None:
    image = picture(width, height)
    expected = np.asarray(processor(True)(image, return_tensors="np")["pixel_values"])
    assert np.abs(pixel_values(image, replace(SPEC, aspect_ratio="crop")) - expected).max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pixels_are_torchs_bit_for_bit(seed: int) -> None:
    """Products, differences and quotients of float32 round alike everywhere, as long as their order is the same."""
    levels = np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    rgb = torch.from_numpy(levels).float().permute(2, 0, 1) * (1 / 255)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (SPEC.image_mean, SPEC.image_std))
    np.testing.assert_array_equal(pixel_values(Image.fromarray(levels), SPEC)[0], ((rgb - mean) / std).numpy())
