"""FastVLM's tower against transformers, and its names and size against what is published."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.fast_vlm import PREFIX, State, apples_names, fast_vlm, noise
from vlmexport.design import vision_of
from vlmexport.errors import Unsupported
from vlmexport.families.reading.fastvit_tensors import SIZES, timm_name, variant_of
from vlmexport.model import plugins

pytest.importorskip("timm", reason="timm is not installed")


def filled(state: State, side: int) -> tuple[Any, nn.Module]:
    """Our tower with a state dict."""
    spec = vision_of("fastvit:tiny", side)
    module = plugins.vision(spec).build(spec)
    assert set(module.state_dict()) == set(state)
    module.load_state_dict(state, assign=True, strict=False)
    return spec, module.eval()


@torch.inference_mode()
@pytest.mark.parametrize("side", [128, 1024])
def test_features_are_those_of_a_checkpoint_of_transformers(side: int, tmp_path: Path) -> None:
    model = fast_vlm(inference_mode=True)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tower = {name.removeprefix(PREFIX): value for name, value in saved.items() if name.startswith(PREFIX)}
    spec, module = filled({timm_name(k): v for k, v in tower.items() if not k.endswith("num_batches_tracked")}, side)
    want = model.model.get_image_features(noise(side, 2), return_dict=True).last_hidden_state
    assert want.shape == (2, SIZES["tiny"].features, side // 64, side // 64)
    got = plugins.vision(spec).features(module, noise(side, 2), spec)
    assert got.shape == (2, spec.num_patches, spec.hidden_size)
    for image, rows in zip(want, got, strict=True):
        assert torch.allclose(rows, image.flatten(1).T, atol=1e-5 * float(image.norm()) / image.numel() ** 0.5)


@pytest.mark.parametrize("merged", [True, False])
def test_apples_names_become_timms(merged: bool) -> None:
    names = apples_names(merged)
    assert {name: timm_name(name) for name in names} == names
    assert {name: timm_name(name) for name in names.values()} == {name: name for name in names.values()}
    tower = fast_vlm(inference_mode=merged).model.vision_tower.timm_model
    assert sorted(names.values()) == sorted(tower.state_dict())


def test_names_that_are_none_of_a_tower_stay() -> None:
    assert [timm_name(name) for name in ("head.proj", "network.11.0.x", "network.a")] == [
        "head.proj", "network.11.0.x", "network.a",
    ]  # fmt: skip


def test_the_full_size_is_the_published_one() -> None:
    """125.1 million parameters (arXiv:2412.13303, table 1), with the head [3072, 768] that FastVLM does not use."""
    spec = vision_of("fastvit")
    plugin = plugins.vision(spec)
    module = plugin.build(spec).eval()
    count = sum(value.numel() for value in module.parameters())
    assert (count + 3072 * 768) / 1e6 == pytest.approx(125.1, abs=0.05)
    with torch.no_grad():
        found = plugin.features(module, torch.empty(2, 3, 1024, 1024, device="meta"), spec)
    assert found.shape == (2, 256, 3072) == (2, spec.num_patches, spec.hidden_size)
    assert (spec.variant, *plugin.colours(spec)) == ("mci3", (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize("variant", SIZES)
def test_a_tower_is_known_by_its_tensors(variant: str) -> None:
    spec = vision_of(f"fastvit:{variant}")
    shapes = {name: tuple(value.shape) for name, value in plugins.vision(spec).build(spec).state_dict().items()}
    assert variant_of(shapes, "here") == variant
    narrower = {name: shape for name, shape in shapes.items() if not name.startswith("stages.1.blocks.1.")}
    with pytest.raises(Unsupported, match=r"here: a FastViT of .* blocks, .* wide is not known: known: mci3"):
        variant_of(narrower, "here")


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("fastvit:mci9", None, "known: fastvit:mci3, fastvit:mci4"),
        ("fastvit", 1000, "use a multiple of 64, such as 1024"),
    ],
)
def test_what_there_is_not_is_said(text: str, size: int | None, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        vision_of(text, size)


def test_what_int8_does_not_serve_are_layers_that_there_are() -> None:
    spec = vision_of("fastvit:tiny")
    paths = [f"vision.{name}" for name, _ in plugins.vision(spec).build(spec).named_modules()]
    kept = plugins.float_layers(spec)
    assert all(any(fnmatchcase(path, pattern) for path in paths) for pattern in kept)
    assert plugins.float_layers(vision_of("clip:tiny")) == {}
