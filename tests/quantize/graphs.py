"""Float graphs of a few nodes, as the exporter would make them, and their outputs under ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from torch import nn

from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.calibrate import LayerStatistics
from vlmexport.quantize.static_int8 import initializer

F32 = npt.NDArray[np.float32]


def layer_graph(layer: nn.Linear | nn.Conv2d, shape: tuple[int | str, ...]) -> ir.Model:
    """x → one layer → y."""
    source = ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": 21}, name="graph")
    weight = layer.weight.detach().numpy()
    assert layer.bias is not None
    bias = initializer(graph, "layer.bias", layer.bias.detach().numpy())
    if isinstance(layer, nn.Conv2d):
        attributes = {
            "kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": [1 if layer.padding[0] else 0] * 4,
            "group": layer.groups,
        }  # fmt: skip
        nodes = [ir.node("Conv", [source, initializer(graph, "layer.weight", weight), bias], attributes, name="layer")]
    else:
        product = ir.node("MatMul", [source, initializer(graph, "layer.weight", weight.T.copy())], name="layer")
        nodes = [product, ir.node("Add", [product.outputs[0], bias])]
    return _finish(graph, nodes)


def gated_graph(norm: F32, gate: F32, up: F32, down: F32) -> ir.Model:
    """x [batch, rows, columns] → x·norm → down(gate(x)·up(x)) → y, a SwiGLU without its sigmoid; weights are [in, out].

    Of two dimensions ONNX Runtime would make a float Gemm of the second int8 term and its sum with the first.
    """
    source = ir.val("x", dtype=ir.DataType.FLOAT, shape=("batch", "rows", norm.size))
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": 21}, name="graph")
    weights = {name: initializer(graph, f"{name}.weight", array) for name, array in
               (("norm", norm), ("gate", gate), ("up", up), ("down", down))}  # fmt: skip
    scaled = ir.node("Mul", [source, weights["norm"]])
    left = ir.node("MatMul", [scaled.outputs[0], weights["gate"]], name="gate")
    right = ir.node("MatMul", [scaled.outputs[0], weights["up"]], name="up")
    product = ir.node("Mul", [left.outputs[0], right.outputs[0]])
    down_node = ir.node("MatMul", [product.outputs[0], weights["down"]], name="down")
    return _finish(graph, [scaled, left, right, product, down_node])


def outputs(model: ir.Model, x: F32, path: Path) -> F32:
    """y of a graph."""
    ir.save(model, path / "graph.onnx")
    y: F32 = run(open_session(path / "graph.onnx"), {"x": x})["y"]
    return y


def fused(graph: Path, scratch: Path) -> list[str]:
    """Operators of a graph file after ONNX Runtime's optimisation."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(scratch / "optimised.onnx")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(scratch / "optimised.onnx", load_external_data=False).graph.node]


def observed(rows: F32) -> LayerStatistics:
    """Statistics of f32 [rows, columns]."""
    layer = LayerStatistics(rows.shape[-1])
    layer.add(rows.copy())
    return layer


def _finish(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Model:
    graph.extend(nodes)
    output = nodes[-1].outputs[0]
    output.name, output.type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(output)
    return ir.Model(graph, ir_version=10)
