"""The bias of an int8 pointwise convolution before a GELU: part of the product, and read back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.quantize.graphs import F32, fused
from vlmexport.artifact.onnx.passes import fuse_bias
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.read.int8_layers import int8_layers, int8_products
from vlmexport.artifact.onnx.read.layer_outputs import boundaries
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.static_int8 import initializer, quantize

FLOAT = ir.TensorType(ir.DataType.FLOAT)
SPANS = {"vision.fc1": Range(-4, 4), "vision.fc2": Range(-1, 4)}


def mlp(scheme: str) -> ir.Model:
    """x → fc1 → GELU → fc2 → y, both layers int8."""
    random = np.random.default_rng(0)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=("batch", 16, 6, 6))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="graph")

    def convolved(path: str, value: ir.Value, outputs: int, inputs: int) -> ir.Value:
        weight = initializer(graph, f"{path}.weight", random.normal(0, 0.3, (outputs, inputs, 1, 1)).astype(np.float32))
        bias = initializer(graph, f"{path}.bias", random.normal(0, 1, outputs).astype(np.float32))
        node = ir.node("Conv", [value, weight, bias], {"kernel_shape": (1, 1), "strides": (1, 1)}, name=path)
        value = node.outputs[0]
        value.name, value.shape, value.type = f"{path}.value", ir.Shape(("batch", outputs, 6, 6)), FLOAT
        graph.append(node)
        return value

    gelu = ir.node("Gelu", [convolved("vision.fc1", x, 64, 16)], name="gelu")
    gelu.outputs[0].name = "gelu.value"
    graph.append(gelu)
    y = convolved("vision.fc2", gelu.outputs[0], 16, 64)
    y.name = "y"
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=10)
    quantize(model, SPANS, find_scheme(scheme), keep=lambda product: None)
    return model


def computed(path: Path) -> F32:
    x = np.random.default_rng(1).normal(0, 1, (2, 16, 6, 6)).astype(np.float32)
    y: F32 = run(open_session(path), {"x": x})["y"]
    return y


def test_the_product_adds_the_bias_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    save(mlp("fbgemm"), before)
    model = mlp("fbgemm")
    assert fuse_bias.fuse(model) == 1  # behind fc2 there is no GELU
    save(model, after)
    np.testing.assert_allclose(computed(after), computed(before), rtol=1e-5, atol=1e-5)
    assert "BiasGelu" in fused(before, tmp_path)
    kinds = fused(after, tmp_path)
    assert "BiasGelu" not in kinds
    assert kinds.count(fuse_bias.OPERATOR) == 2

    for was, found in zip(int8_layers(before), int8_layers(after), strict=True):
        assert (found.path, found.written, found.read, found.terms) == (was.path, was.written, was.read, was.terms)
        for one, other in zip(found.weight(), was.weight(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [(one.name, one.is_unsigned, one.can_saturate()) for one in int8_products(after)] == [
        (one.name, one.is_unsigned, one.can_saturate()) for one in int8_products(before)
    ]
    ends = {one.path: (one.without_bias, one.channels_last) for one in boundaries(after)}
    assert ends == {"vision.fc1": (False, True), "vision.fc2": (True, True)}


@pytest.mark.parametrize("scheme", ["qnnpack"])
def test_signed_inputs_are_left_to_the_runtime(scheme: str) -> None:
    model = mlp(scheme)
    before = [node.name for node in model.graph]
    assert fuse_bias.fuse(model) == 0
    assert [node.name for node in model.graph] == before
