"""Layers repeated from a trace of three: the same function as all of them in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact.onnx.passes import attach_weights, repeat_layers
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import FEATURES, NUM_LOGITS
from vlmexport.artifact.onnx.trace import compare, components
from vlmexport.errors import Unsupported
from vlmexport.model import load
from vlmexport.model.sketch import prefix, sketch
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

TOTAL = 5


def checkpoint(folder: Path, select_feature: str = "patch") -> Checkpoint:
    """Five decoder layers, and a tower of seven that uses five."""
    spec = tiny_spec("mlp2x_gelu", image_size=56, num_layers=TOTAL, num_kv_heads=2)
    vision = replace(spec.vision, num_layers=TOTAL + 2, select_layer=-3, select_feature=select_feature)
    projector = replace(spec.projector, in_tokens=vision.num_patches)
    return open_checkpoint(write_checkpoint(folder / "five", replace(spec, vision=vision, projector=projector)))


def repeated(found: Checkpoint, traced: components.Traced, stack: str) -> components.Traced:
    parameters = dict(sketch(found.spec, repeat_layers.TRACED).state_dict())
    attach_weights.attach(traced.model, attach_weights.orientations(traced.model, parameters), found)
    repeat_layers.repeat(traced.model, prefix(found.spec, stack), TOTAL, attach_weights.next_layer(found))
    return traced


@pytest.mark.slow
@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
def test_tower(select_feature: str, tmp_path: Path) -> None:
    found = checkpoint(tmp_path, select_feature)
    traced = repeated(found, components.trace_vision(sketch(found.spec, repeat_layers.TRACED)), "vision")
    save(traced.model, tmp_path / "vision.onnx")
    whole = replace(traced, module=type(traced.module)(load(found)))  # type: ignore[call-arg]
    assert compare.check(whole, tmp_path / "vision.onnx") < 1e-5
    assert [value.name for value in traced.model.graph.outputs] == ["image_features"]
    features = [v for node in traced.model.graph for v in node.outputs if v.name == FEATURES]
    assert len(features) == 1


@pytest.mark.slow
def test_decoder(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    traced = repeated(found, components.trace_decoder(sketch(found.spec, repeat_layers.TRACED)), "language")
    save(traced.model, tmp_path / "decoder.onnx")
    assert compare.check_cache(load(found), tmp_path / "decoder.onnx") < 1e-5
    names = [f"present.{layer}.{part}" for layer in range(TOTAL) for part in ("key", "value")]
    assert [value.name for value in traced.model.graph.outputs] == ["logits", *names]
    inputs = [value.name for value in traced.model.graph.inputs if value.name != NUM_LOGITS]
    assert inputs[3:] == [name.replace("present", "past_key_values") for name in names]
    shapes = {value.name: [str(size) for size in value.shape or ()] for value in traced.model.graph.outputs}
    assert shapes["present.4.key"] == ["batch_size", "2", "total_sequence_length", "64"]


def stack(kinds: list[str]) -> ir.Model:
    """A chain of one node a layer."""
    x = ir.Value(name="x", shape=ir.Shape([2]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes: list[ir.Node] = []
    for layer, kind in enumerate(kinds):
        node = ir.Node("", kind, [nodes[-1].outputs[0] if nodes else x], name=f"n{layer}")
        node.outputs[0].name = f"y{layer}"
        node.meta["module"] = f"layers.{layer}.act"
        nodes.append(node)
    return ir.Model(ir.Graph([x], [nodes[-1].outputs[0]], nodes=nodes, opset_imports={"": 21}), ir_version=10)


def no_weight(name: str, value: Any) -> Any:
    raise AssertionError(f"{name} is no weight")


def test_layers_that_are_not_alike_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"layers\.\* are not alike when traced \(n1 and n2\)"):
        repeat_layers.repeat(stack(["Relu", "Relu", "Tanh"]), "layers.", 6, no_weight)
    with pytest.raises(Unsupported, match="0 and 0 nodes"):
        repeat_layers.repeat(stack(["Relu", "Relu", "Relu"]), "blocks.", 6, no_weight)


def test_a_short_stack_stays() -> None:
    model = stack(["Relu", "Relu", "Tanh"])
    repeat_layers.repeat(model, "layers.", 3, no_weight)
    assert [node.op_type for node in model.graph] == ["Relu", "Relu", "Tanh"]
