"""Weights that are no floats: named as what they are, and never taken for values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoints import State, write_checkpoint, write_clip
from vlmexport.errors import CheckpointError, Unsupported, VlmExportError
from vlmexport.source.checkpoint import open_checkpoint

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
CARD = "---\nbase_model: owner/the-float-one\n---\n"


@pytest.fixture(scope="module")
def state(tiny_folder: Path) -> State:
    """The tiny model's tensors."""
    return load_file(tiny_folder / "model.safetensors")


def without(state: State) -> State:
    return {name: value for name, value in state.items() if name.removesuffix(".weight") not in LAYERS}


def bnb8(state: State) -> State:
    """Whole numbers with a scale each row."""
    found = dict(state)
    for layer in LAYERS:
        scale = found[f"{layer}.weight"].float().abs().amax(1)
        found[f"{layer}.weight"] = (found[f"{layer}.weight"].float() / scale[:, None] * 127).round().to(torch.int8)
        found |= {f"{layer}.SCB": scale, f"{layer}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return found


def bnb4(state: State) -> State:
    found = dict(state)
    for layer in LAYERS:
        count = found[f"{layer}.weight"].numel()
        found |= {
            f"{layer}.weight": torch.zeros(count // 2, 1, dtype=torch.uint8),
            f"{layer}.weight.absmax": torch.ones(count // 64),
            f"{layer}.weight.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=torch.uint8),
        }
    return found


def packed(state: State) -> State:
    """AWQ's and GPTQ's."""
    found = without(state)
    for layer in LAYERS:
        found |= {f"{layer}.qweight": torch.zeros(256, 32, dtype=torch.int32)}
        found |= {f"{layer}.scales": torch.ones(2, 256, dtype=torch.float16)}
    return found


def gptq(state: State) -> State:
    return packed(state) | {f"{layer}.g_idx": torch.zeros(256, dtype=torch.int32) for layer in LAYERS}


def fp8(state: State) -> State:
    found = dict(state)
    for layer in LAYERS:
        found[f"{layer}.weight"] = found[f"{layer}.weight"].to(torch.float8_e4m3fn)
        found[f"{layer}.weight_scale_inv"] = torch.ones(1, 1)
    return found


def compressed(state: State) -> State:
    found = without(state)
    for layer in LAYERS:
        found |= {f"{layer}.weight_packed": torch.zeros(256, 32, dtype=torch.int32)}
        found |= {f"{layer}.weight_scale": torch.ones(256, 1), f"{layer}.weight_shape": torch.tensor([256, 256])}
    return found


def mxfp4(state: State) -> State:
    found = without(state)
    for layer in LAYERS:
        found |= {f"{layer}_blocks": torch.zeros(8, 4, dtype=torch.uint8)}
    return found


KINDS: dict[str, tuple[Callable[[State], State], dict[str, Any], str, str]] = {
    "bnb8": (bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits", "call dequantize()"),
    "bnb8-early": (bnb8, {"load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes, 8 bits", "call dequantize()"),
    "bnb4": (bnb4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits", "call dequantize()"),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits", "(owner/the-float-one)"),
    "awq": (packed, {"quant_method": "awq", "bits": 4}, "awq, 4 bits", "(owner/the-float-one)"),
    "fp8": (fp8, {"quant_method": "fp8"}, "fp8", "FineGrainedFP8Config(dequantize=True)"),
    "compressed": (
        compressed, {"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors",
        "CompressedTensorsConfig(dequantize=True)",
    ),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4"}, "mxfp4", "Mxfp4Config(dequantize=True)"),
}  # fmt: skip


def refused(folder: Path) -> VlmExportError:
    with pytest.raises(VlmExportError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_and_how_to_get_floats(kind: str, state: State, tmp_path: Path) -> None:
    make, config, what, cure = KINDS[kind]
    folder = write_checkpoint(tmp_path / "model", state=make(state), quantization_config=config)
    (folder / "README.md").write_text(CARD)
    error = refused(folder)
    assert isinstance(error, Unsupported)
    assert f"is quantized already ({what}; " in error.what
    assert "pass the float model that it was made from (owner/the-float-one)" in error.cure
    assert cure in error.cure


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (bnb8, "bitsandbytes, 8 bits"), (bnb4, "bitsandbytes, 4 bits"), (gptq, "gptq"), (packed, "gptq or awq"),
        (fp8, "fp8"), (compressed, "compressed-tensors"), (mxfp4, "mxfp4"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_say_so(make: Callable[[State], State], what: str, state: State, tmp_path: Path) -> None:
    error = refused(write_checkpoint(tmp_path / "model", state=make(state)))
    assert isinstance(error, Unsupported)
    assert f"({what}; " in error.what


def test_what_stands_in_another_file_or_section(state: State, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", state=packed(state))
    (folder / "quant_config.json").write_text(json.dumps({"w_bit": 4, "q_group_size": 128}))
    assert "(awq, 4 bits; " in refused(folder).what
    inside = {"text_config": {"quantization_config": {"quant_method": "hqq"}}}
    folder = write_checkpoint(tmp_path / "other", state=packed(state), **inside)
    assert "(hqq; " in refused(folder).what


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool", "uint16"])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.mm_projector.mlp.mlp.0.bias"])
def test_whole_numbers_without_scales(name: str, dtype: str, kind: str, state: State, tmp_path: Path) -> None:
    whole = state | {name: state[name].sign().abs().to(getattr(torch, dtype))}
    error = refused(write_checkpoint(tmp_path / "model", state=whole, kind=kind))
    assert isinstance(error, CheckpointError)
    assert f"model: {name} holds whole numbers (" in error.what
    assert error.what.endswith(") where a weight belongs, and no scales")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_small_floats_without_scales(dtype: str, kind: str, state: State, tmp_path: Path) -> None:
    name = "model.norm.weight"
    small = state | {name: state[name].to(getattr(torch, dtype))}
    error = refused(write_checkpoint(tmp_path / "model", state=small, kind=kind))
    assert isinstance(error, Unsupported)
    assert f"model: {name} holds floats of 8 bits or fewer (f" in error.what


def test_a_config_that_was_left_when_the_weights_became_floats_again(tiny_folder: Path, tmp_path: Path) -> None:
    left = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = write_checkpoint(
        tmp_path / "model", state=load_file(tiny_folder / "model.safetensors"), quantization_config=left
    )
    assert open_checkpoint(folder).spec.language == open_checkpoint(tiny_folder).spec.language


def test_a_tower_of_its_own(tiny_folder: Path, state: State, tmp_path: Path) -> None:
    spec = open_checkpoint(tiny_folder).spec
    prefix = "model.vision_tower.vision_tower."
    tower = {name.removeprefix(f"{prefix}vision_model."): value for name, value in state.items() if prefix in name}
    clip = write_clip(tmp_path / "clip", spec, tower | {"pre_layrnorm.bias": tower["pre_layrnorm.bias"].to(torch.int8)})
    rest = {name: value for name, value in state.items() if prefix not in name}
    folder = write_checkpoint(tmp_path / "model", state=rest, mm_vision_tower=str(clip))
    assert "clip: vision_model.pre_layrnorm.bias holds whole numbers (i8)" in refused(folder).what
