"""Operations against the same counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.costs.operations import QUESTION, count
from vlmexport.design import Design, specify


def test_clip_and_llama() -> None:
    spec = specify(Design("clip:l14-336", "linear", "llama:1.4b"))
    found = count(spec)
    vision, language = spec.vision, spec.language
    rows, width = vision.num_patches + 1, vision.hidden_size
    layer = 2 * rows * width * (4 * width + 2 * vision.intermediate_size) + 4 * rows * rows * width
    assert found.vision == 2 * vision.num_patches * 3 * 14 * 14 * width + vision.used_layers * layer
    assert found.projector == 2 * vision.num_patches * width * language.hidden_size
    assert found.visual_tokens == vision.num_patches
    weights = language.num_layers * language.hidden_size * (4 * language.hidden_size + 3 * language.intermediate_size)
    head = language.vocab_size * language.hidden_size
    attention = 4 * language.num_layers * language.hidden_size
    positions = vision.num_patches + QUESTION
    assert found.positions == positions
    assert found.prompt == 2 * (positions * weights + head) + attention * positions**2
    assert found.token == 2 * (weights + head) + attention * (positions + 1)


def test_gpt2() -> None:
    spec = specify(Design("clip:tiny", "linear", "gpt2:124m"))
    found, language = count(spec), spec.language
    weights = language.num_layers * language.hidden_size * (4 * language.hidden_size + 2 * language.intermediate_size)
    attention = 4 * language.num_layers * language.hidden_size * (found.positions + 1)
    assert found.token == 2 * (weights + language.vocab_size * language.hidden_size) + attention


@pytest.mark.parametrize("vision", ["mobileformer:tiny", "s2:clip:tiny", "siglip:tiny", "timm:mobilenetv3_small_100"])
def test_every_kind_of_encoder_can_be_counted(vision: str) -> None:
    found = count(specify(Design(vision, "linear", "llama:tiny")))
    assert found.vision > 0
    assert found.visual_tokens > 0


def test_mobileformer_is_as_large_as_its_name_says() -> None:
    """26M multiply-adds at 224 pixels with the classifier that features leave out (arXiv:2108.05895): a
    convolution of 96 channels to 576 on the last map, and two layers over these and the first token of 128."""
    found = count(specify(Design("mobileformer:26m", "linear", "llama:tiny")))
    classifier = 7 * 7 * 96 * 576 + (576 + 128) * 1024 + 1024 * 1000
    assert found.vision / 2 + classifier == pytest.approx(26e6, rel=0.03)


@pytest.mark.parametrize(("resizes", "views"), [(True, 17), (False, 65)])
def test_all_views_of_a_picture_count(resizes: bool, views: int) -> None:
    """Of one that is cut as large as it is, those of 1024x1024 pixels."""
    known = specify(Design("siglip:tiny", "linear", "llama:tiny"))
    cuts = ImageProcessorSpec.tiles(512, 128, do_resize=resizes)
    one, found = count(known), count(replace(known, image_processor=cuts))
    assert (found.views, found.vision, found.visual_tokens) == (views, views * one.vision, views * one.visual_tokens)
