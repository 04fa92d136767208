"""Traced graphs against the float model, for every projector that the folder holds, and their contract."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import FEATURES, open_session, run, with_outputs
from vlmexport.artifact.onnx.trace import compare, components
from vlmexport.errors import ParityFailed
from vlmexport.model import VLM, load, projector
from vlmexport.quantize.products import products
from vlmexport.runtime.ort.int8_kernels import kernels_here
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

PROJECTORS = [
    getattr(import_module(f"{projector.__name__}.{info.name}"), "EXAMPLE", info.name)
    for info in iter_modules(projector.__path__)
]


@pytest.fixture(scope="module")
def vlm(tiny: Checkpoint) -> VLM:
    return load(tiny)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> components.Traced:
    """Grouped-query attention: two key/value heads for four."""
    folder = tmp_path_factory.mktemp("grouped") / "grouped"
    vlm = load(open_checkpoint(write_checkpoint(folder, tiny_spec(num_kv_heads=2))))
    vlm.language.set_attn_implementation("eager")  # type: ignore[operator]  # as a sketch has it
    return components.trace_decoder(vlm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROJECTORS)
def test_vision_and_projector(kind: str, tmp_path: Path) -> None:
    vlm = load(open_checkpoint(write_checkpoint(tmp_path / "tiny", tiny_spec(kind))))
    vision, alone = components.trace_vision(vlm), components.trace_projector(vlm)
    for traced in (vision, alone):
        save(traced.model, tmp_path / f"{traced.name}.onnx")
        # A quantized projector may round a value the other way where float sums differ.
        bound = 1e-5 if traced.tolerance == components.Traced.tolerance else traced.tolerance
        assert compare.check(traced, tmp_path / f"{traced.name}.onnx") < bound
    graph = with_outputs(tmp_path / "vision_encoder.onnx", [FEATURES])
    session = open_session(tmp_path / "vision_encoder.onnx", graph=graph, exact=kernels_here().saturates)
    pixels = torch.randn(2, 3, 336, 336)
    outputs = run(session, {"pixel_values": pixels.numpy()})
    with torch.inference_mode():
        features = vlm.features(pixels)
        tokens = vlm.tokens(features)
    np.testing.assert_allclose(outputs["features"], features.numpy(), atol=1e-4)
    room = max(1e-4, vision.tolerance * float(tokens.abs().max()))
    np.testing.assert_allclose(outputs["image_features"], tokens.flatten(0, 1).numpy(), atol=room)
    linear = {name for name, m in vlm.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    found = {product.path for product in products(vision.model)}
    unused = f"vision.encoder.layers.{vlm.spec.vision.used_layers}."
    assert found == {name for name in linear if not name.startswith(("language.", unused))}
    assert {product.path for product in products(alone.model)} == {n for n in found if n.startswith("projector")}


@pytest.mark.slow
def test_decoder(decoder: components.Traced, tmp_path: Path) -> None:
    save(decoder.model, tmp_path / "decoder.onnx")
    assert compare.check(decoder, tmp_path / "decoder.onnx") < 1e-5
    values = decoder.model.graph.inputs
    inputs = {value.name: (value.dtype, [str(size) for size in value.shape or ()]) for value in values}
    assert inputs["inputs_embeds"] == (ir.DataType.FLOAT, ["batch_size", "sequence_length", "256"])
    assert inputs["attention_mask"] == (ir.DataType.INT64, ["batch_size", "total_sequence_length"])
    assert inputs["position_ids"] == (ir.DataType.INT64, ["batch_size", "sequence_length"])
    cache = (ir.DataType.FLOAT, ["batch_size", "2", "past_sequence_length", "64"])
    for layer in range(2):
        assert inputs[f"past_key_values.{layer}.key"] == inputs[f"past_key_values.{layer}.value"] == cache
    outputs = [value.name for value in decoder.model.graph.outputs]
    assert outputs == ["logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value"]


@pytest.mark.slow
def test_a_wrong_weight_is_noticed(decoder: components.Traced, tmp_path: Path) -> None:
    graph = decoder.model.clone()
    weight = graph.graph.initializers["language.model.layers.0.mlp.up_proj.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    save(graph, tmp_path / "decoder.onnx")
    with pytest.raises(ParityFailed, match="decoder_model_merged is off"):
        compare.check(decoder, tmp_path / "decoder.onnx")
