"""Layers repeated from a trace of three: the same function as all of them in PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact import layers, trace, verify, weights
from vlmexport.artifact.graph import save
from vlmexport.artifact.session import NUM_LOGITS
from vlmexport.checkpoint import Checkpoint, open_checkpoint
from vlmexport.errors import Unsupported
from vlmexport.model import load
from vlmexport.model.sketch import prefix, sketch

TOTAL = 5


def checkpoint(folder: Path, select_feature: str = "patch") -> Checkpoint:
    """Five decoder layers, and a tower of seven that uses five."""
    spec = tiny_spec("mlp2x_gelu", image_size=56, num_layers=TOTAL, num_kv_heads=2)
    vision = replace(spec.vision, num_layers=TOTAL + 2, select_layer=-3, select_feature=select_feature)
    projector = replace(spec.projector, in_tokens=vision.num_patches)
    return open_checkpoint(write_checkpoint(folder / "five", replace(spec, vision=vision, projector=projector)))


def repeated(found: Checkpoint, traced: trace.Traced, stack: str) -> trace.Traced:
    parameters = dict(sketch(found.spec, layers.TRACED).state_dict())
    weights.attach(traced.model, weights.orientations(traced.model, parameters), found)
    layers.repeat(traced.model, prefix(found.spec, stack), TOTAL, weights.next_layer(found))
    return traced


@pytest.mark.slow
@pytest.mark.parametrize("select_feature", ["patch", "cls_patch"])
def test_tower(select_feature: str, tmp_path: Path) -> None:
    found = checkpoint(tmp_path, select_feature)
    traced = repeated(found, trace.trace_vision(sketch(found.spec, layers.TRACED)), "vision")
    save(traced.model, tmp_path / "vision.onnx")
    whole = replace(traced, module=type(traced.module)(load(found)))  # type: ignore[call-arg]
    assert verify.check(whole, tmp_path / "vision.onnx") < 1e-5
    assert [value.name for value in traced.model.graph.outputs] == ["image_features"]
    features = [v for node in traced.model.graph for v in node.outputs if v.name == trace.FEATURES]
    assert len(features) == 1


@pytest.mark.slow
def test_decoder(tmp_path: Path) -> None:
    found = checkpoint(tmp_path)
    traced = repeated(found, trace.trace_decoder(sketch(found.spec, layers.TRACED)), "language")
    save(traced.model, tmp_path / "decoder.onnx")
    assert verify.check_cache(load(found), tmp_path / "decoder.onnx") < 1e-5
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
        layers.repeat(stack(["Relu", "Relu", "Tanh"]), "layers.", 6, no_weight)
    with pytest.raises(Unsupported, match="0 and 0 nodes"):
        layers.repeat(stack(["Relu", "Relu", "Relu"]), "blocks.", 6, no_weight)


def test_a_short_stack_stays() -> None:
    model = stack(["Relu", "Relu", "Tanh"])
    layers.repeat(model, "layers.", 3, no_weight)
    assert [node.op_type for node in model.graph] == ["Relu", "Relu", "Tanh"]
