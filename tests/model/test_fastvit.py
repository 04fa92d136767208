"""FastVLM's tower against transformers, and its names and size against what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import FastVlmConfig, FastVlmForConditionalGeneration

from vlmexport.checkpoint.fastvit import SIZES, timm_name, variant_of
from vlmexport.design import vision_of
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.random_weights import measure_statistics, randomise

pytest.importorskip("timm", reason="timm is not installed")
State = dict[str, torch.Tensor]
TINY = SIZES["tiny"]
PREFIX = "model.vision_tower.timm_model."


def fast_vlm(**model_args: Any) -> FastVlmForConditionalGeneration:
    """transformers' FastVLM around a narrow tower, of random weights."""
    text = {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    vision = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": TINY.features,
        "model_args": {"layers": TINY.blocks, "embed_dims": TINY.widths, **model_args},
    }  # fmt: skip
    model = FastVlmForConditionalGeneration(FastVlmConfig(vision_config=vision, text_config=text)).eval()
    tower = model.model.vision_tower.timm_model
    randomise(tower, torch.Generator().manual_seed(0))
    measure_statistics(tower, lambda: tower.forward_features(noise(128, 4)))
    return model


def noise(side: int, images: int = 1) -> torch.Tensor:
    return torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(1))


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
    assert want.shape == (2, TINY.features, side // 64, side // 64)
    got = plugins.vision(spec).features(module, noise(side, 2), spec)
    assert got.shape == (2, spec.num_patches, spec.hidden_size)
    for image, rows in zip(want, got, strict=True):
        assert torch.allclose(rows, image.flatten(1).T, atol=1e-5 * float(image.norm()) / image.numel() ** 0.5)


def apples_names(merged: bool) -> dict[str, str]:
    """What Apple's modules call the tensors of a tower of ``tiny``'s size, and what timm's call them.

    Args:
        merged: the form for inference, in which their checkpoints are published; else that for training.
    """
    found: dict[str, str] = {}

    def add(apple: str, timm: str, *parts: str) -> None:
        found.update({f"{apple}.{part}": f"{timm}.{part}" for part in parts or ("weight", "bias")})

    def norm(apple: str, timm: str) -> None:
        add(apple, timm, "weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def branch(apple: str, timm: str) -> None:
        add(f"{apple}.conv", f"{timm}.conv", "weight")
        norm(f"{apple}.bn", f"{timm}.bn")

    def mobile_one(apple: str, timm: str, scale: bool, skip: bool, convolved: bool = True) -> None:
        if merged:
            return add(f"{apple}.reparam_conv", f"{timm}.reparam_conv")
        if convolved:
            branch(f"{apple}.rbr_conv.0", f"{timm}.conv_kxk.0")
        if scale:
            branch(f"{apple}.rbr_scale", f"{timm}.conv_scale")
        if skip:
            norm(f"{apple}.rbr_skip", f"{timm}.identity")
        return None

    def block(apple: str, timm: str, attends: bool) -> None:
        mixer = (f"{apple}.token_mixer", f"{timm}.token_mixer")
        if attends:
            add(f"{apple}.norm", f"{timm}.norm")
            add(f"{mixer[0]}.qkv", f"{mixer[1]}.qkv", "weight")
            add(f"{mixer[0]}.proj", f"{mixer[1]}.proj")
        elif merged:
            add(f"{mixer[0]}.reparam_conv", f"{mixer[1]}.reparam_conv")
        else:
            mobile_one(f"{mixer[0]}.mixer", f"{mixer[1]}.mixer", True, True)
            mobile_one(f"{mixer[0]}.norm", f"{mixer[1]}.norm", False, True, convolved=False)
            found[f"{mixer[0]}.layer_scale"] = f"{mixer[1]}.layer_scale.gamma"
        for scale in ("layer_scale_1", "layer_scale_2") if attends else ("layer_scale",):
            found[f"{apple}.{scale}"] = f"{timm}.{scale}.gamma"
        branch(f"{apple}.convffn.conv", f"{timm}.mlp.conv")
        for part in ("fc1", "fc2"):
            add(f"{apple}.convffn.{part}", f"{timm}.mlp.{part}")

    for i, skip in enumerate((False, False, True)):
        mobile_one(f"patch_embed.{i}", f"stem.{i}", False, skip)
    place = 0
    for stage, count in enumerate(TINY.blocks):
        if stage:
            apple, timm = f"network.{place}.proj", f"stages.{stage}.downsample.proj"
            if merged:
                add(f"{apple}.0.lkb_reparam", f"{timm}.0.reparam_conv")
            else:
                branch(f"{apple}.0.lkb_origin", f"{timm}.0.large_conv")
                branch(f"{apple}.0.small_conv", f"{timm}.0.small_conv")
            mobile_one(f"{apple}.1", f"{timm}.1", False, True)
            place += 1
        if stage > 2:
            names = ("reparam_conv", "reparam_conv") if merged else ("pe", "pos_enc")
            add(f"network.{place}.{names[0]}", f"stages.{stage}.pos_emb.{names[1]}")
            place += 1
        for i in range(count):
            block(f"network.{place}.{i}", f"stages.{stage}.blocks.{i}", stage > 2)
        place += 1
    mobile_one("conv_exp", "final_conv", True, False)
    add("conv_exp.se.reduce", "final_conv.se.fc1")
    add("conv_exp.se.expand", "final_conv.se.fc2")
    return found


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
