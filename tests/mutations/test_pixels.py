"""Mutations of the image processor that a bundle's clients read."""

from __future__ import annotations

import pytest

from tests.mutations.conftest import Mutate
from tests.mutations.copies import failed

pytestmark = pytest.mark.slow

PROCESSOR = "preprocessor_config.json"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def test_mean_and_deviation_of_imagenet(mutant: Mutate) -> None:
    found = mutant("fp32")
    found.edit_json(PROCESSOR, lambda document: document.update(IMAGENET))
    result = found.check()
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]


def test_a_centre_crop_in_place_of_padding(mutant: Mutate) -> None:
    found = mutant("fp32")
    crop = {"do_center_crop": True, "do_pad": False, "crop_size": {"width": 336, "height": 336}}
    found.edit_json(PROCESSOR, lambda document: document.update(crop))
    result = found.check()
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]
