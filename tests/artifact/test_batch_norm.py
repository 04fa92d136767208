"""Folding a batch norm into the convolution before it: the same function, and nothing where that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vlmexport.artifact.onnx.passes import fold_batch_norm
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import open_session, run

RANDOM = np.random.default_rng(0)
FLOAT = ir.TensorType(ir.DataType.FLOAT)
PIXELS = RANDOM.normal(size=(2, 4, 8, 8)).astype(np.float32)


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array.astype(np.float32), name=name)
    return ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=FLOAT)


def model(bias: bool, also_read: bool = False) -> ir.Model:
    """A convolution, a batch norm; ``also_read``: the convolution's output leaves the graph as well."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 4, 8, 8]), type=FLOAT)
    weights = [constant("w", RANDOM.normal(size=(6, 4, 3, 3)))] + ([constant("b", RANDOM.normal(size=6))] * bias)
    parts = [constant(name, RANDOM.normal(size=6)) for name in ("scale", "shift", "mean")]
    parts.append(constant("variance", RANDOM.uniform(0.5, 2, 6)))
    conv = ir.node("Conv", [x, *weights], {"pads": [1, 1, 1, 1]}, name="conv")
    norm = ir.node("BatchNormalization", [conv.outputs[0], *parts], {"epsilon": 1e-3}, name="norm")
    for node, name in ((conv, "y"), (norm, "z")):
        node.outputs[0].name, node.outputs[0].type = name, FLOAT
    outputs = [norm.outputs[0], *([conv.outputs[0]] * also_read)]
    graph = ir.Graph([x], outputs, nodes=[conv, norm], initializers=weights + parts, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def output(found: ir.Model, path: Path) -> np.ndarray:
    save(found, path)
    return run(open_session(path), {"x": PIXELS})["z"]


@pytest.mark.parametrize("bias", [False, True])
def test_folding_keeps_the_function(bias: bool, tmp_path: Path) -> None:
    found = model(bias)
    before = output(found, tmp_path / "before.onnx")
    assert fold_batch_norm.fold(found) == 1
    assert [node.op_type for node in found.graph] == ["Conv"]
    assert len(found.graph.initializers) == 2
    after = output(found, tmp_path / "after.onnx")
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()


def test_a_convolution_that_others_read_stays(tmp_path: Path) -> None:
    found = model(bias=True, also_read=True)
    before = output(found, tmp_path / "before.onnx")
    assert fold_batch_norm.fold(found) == 0
    assert np.array_equal(output(found, tmp_path / "after.onnx"), before)
