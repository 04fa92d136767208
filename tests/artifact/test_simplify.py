"""onnxsim on graphs of a few nodes: when its graph is taken, and what the report says when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from vlmexport.artifact.onnx.passes.clean import MODULE, module_of
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.artifact.onnx.trace.simplify import simplify
from vlmexport.quantize.products import products


class Layer(nn.Module):
    """x·W + b."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


def traced(turns: int) -> Traced:
    """A linear layer, and after it transpositions as many as ``turns``."""
    module = Layer()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=("rows", 8))
    weight = module.layer.weight.detach().numpy().T.copy()
    parameters = {"layer.weight": weight, "layer.bias": module.layer.bias.detach().numpy()}
    values = {
        name: ir.val(name, const_value=ir.tensor(array, name=name), dtype=ir.DataType.FLOAT, shape=array.shape)
        for name, array in parameters.items()
    }
    nodes = [ir.node("MatMul", [x, values["layer.weight"]], name="layer")]
    nodes.append(ir.node("Add", [nodes[0].outputs[0], values["layer.bias"]], name="biased"))
    for turn in range(turns):
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": [1, 0]}, name=f"turn{turn}"))
    for number, node in enumerate(nodes):
        node.meta[MODULE] = "layer"
        node.outputs[0].name = f"value{number}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    result = nodes[-1].outputs[0]
    result.name, result.shape = "y", ir.Shape(("rows", 8))
    graph = ir.Graph([x], [result], nodes=nodes, initializers=list(values.values()), opset_imports={"": 21}, name="g")
    return Traced("graph", ir.Model(graph, ir_version=10), module, ((torch.ones(3, 8),), (torch.ones(1, 8),)))


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("onnxsim", reason="onnxsim is not installed")


@pytest.mark.usefixtures("_installed")
def test_superfluous_nodes_go_and_weights_stay(tmp_path: Path) -> None:
    before = traced(turns=2)
    found, report = simplify(before, tmp_path)
    assert report == {"nodes_before": 4, "nodes_after": 2, "used": True}
    assert [(node.op_type, module_of(node)) for node in found.model.graph] == [("MatMul", "layer"), ("Add", "layer")]
    assert [product.path for product in products(found.model)] == ["layer"]
    for name, value in before.model.graph.initializers.items():
        held = found.model.graph.initializers[name].const_value
        assert value.const_value is not None
        assert held is not None
        np.testing.assert_array_equal(held.numpy(), value.const_value.numpy())
    assert [value.name for value in found.model.graph.inputs] == ["x"]
    assert str(found.model.graph.inputs[0].shape) == str(before.model.graph.inputs[0].shape)


@pytest.mark.usefixtures("_installed")
def test_a_graph_that_has_nothing_to_lose_stays(tmp_path: Path) -> None:
    before = traced(turns=0)
    found, report = simplify(before, tmp_path)
    assert found is before
    assert report == {"nodes_before": 2, "nodes_after": 2, "used": False, "why": "it leaves out nothing"}


@pytest.mark.usefixtures("_installed")
def test_a_graph_that_is_off_is_not_taken(tmp_path: Path) -> None:
    before = traced(turns=2)
    other = Traced(before.name, before.model, Layer(), before.probes)
    found, report = simplify(other, tmp_path)
    assert found is other
    assert report["used"] is False
    assert "the traced graph is off: y [3, 8] differs" in report["why"]


class Relus(nn.Module):
    """Three of them do what one does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()


@pytest.mark.usefixtures("_installed")
def test_layers_that_would_no_longer_be_alike_stay(tmp_path: Path) -> None:
    """Each turns, cuts and turns back: what is superfluous is half in one layer, half in the next."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=("rows", 8))
    nodes: list[ir.Node] = []
    for number in range(9):
        attributes = {} if number % 3 == 1 else {"perm": [1, 0]}
        source = nodes[-1].outputs[0] if nodes else x
        nodes.append(ir.node("Transpose" if attributes else "Relu", [source], attributes, name=f"node{number}"))
        nodes[-1].meta[MODULE] = f"layers.{number // 3}.act"
        nodes[-1].outputs[0].name = f"value{number}"
    result = nodes[-1].outputs[0]
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("rows", 8))
    graph = ir.Graph([x], [result], nodes=nodes, opset_imports={"": 21}, name="g")
    before = Traced("relus", ir.Model(graph, ir_version=10), Relus(), ((torch.ones(3, 8),),))
    found, report = simplify(before, tmp_path, "layers.")
    assert found is before
    assert report["nodes_after"] < report["nodes_before"] == 9
    assert "layers.* are not alike" in report["why"]


def test_its_absence_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    before = traced(turns=2)
    assert simplify(before, tmp_path) == (before, {"used": False, "why": "onnxsim is not installed"})
