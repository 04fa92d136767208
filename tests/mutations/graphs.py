"""Faults that change the nodes of an ONNX graph, in place."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from vlmexport.artifact.onnx.passes.attach_weights import find, read
from vlmexport.source.locate import open_model

LAST = "vision.encoder.layers.4."


def producer(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    """The node that makes a value."""
    (found,) = (node for node in model.graph.node if value in node.output)
    return found


def rewire(model: onnx.ModelProto, old: str, new: str) -> None:
    """Let every node that reads one value read another."""
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            if value == old:
                node.input[place] = new


def constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> str:
    """Add an initializer; its name."""
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _layer_boundary(model: onnx.ModelProto) -> tuple[str, str]:
    """Input and output of the last layer that runs."""
    last = producer(model, "features").input[0]
    first = producer(model, producer(model, last).input[0]).input[0]
    return first, last


def drop_last_layer(model: onnx.ModelProto) -> None:
    """What follows the last layer reads what it was given."""
    first, last = _layer_boundary(model)
    rewire(model, last, first)


def append_layer(model: onnx.ModelProto) -> None:
    """One more layer of the checkpoint, a copy of the last one's nodes with its own weights."""
    checkpoint = open_model("demo")
    first, last = _layer_boundary(model)
    nodes = list(model.graph.node)
    begin = next(i for i, node in enumerate(nodes) if f"{LAST}layer_norm1.weight" in node.input)
    end = next(i for i, node in enumerate(nodes) if last in node.output)
    made = {output for node in nodes[begin : end + 1] for output in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    copies = []
    for node in nodes[begin : end + 1]:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}/more"
        copy.output[:] = [f"{value}/more" for value in node.output]
        for place, value in enumerate(node.input):
            if value.startswith(LAST):
                own = read(find(checkpoint, value.replace(".4.", ".5.")))
                transposed = own.ndim == 2 and own.shape == tuple(reversed(weights[value].dims)) and "weight" in value
                copy.input[place] = constant(model, f"{value}/more", np.ascontiguousarray(own.T) if transposed else own)
            elif value in made:
                copy.input[place] = f"{value}/more"
            elif value == first:
                copy.input[place] = last
        copies.append(copy)
    rewire(model, last, f"{last}/more")
    for copy in copies:
        for place, value in enumerate(copy.input):
            if value == f"{last}/more":
                copy.input[place] = last
    _insert(model, end + 1, copies)


def keep_class_token(model: onnx.ModelProto) -> None:
    """The first 576 of 577 rows, in place of the last ones."""
    node = producer(model, "features")
    node.input[1] = constant(model, "from_row", np.array([0]))
    node.input[2] = constant(model, "to_row", np.array([576]))


def without_residual(model: onnx.ModelProto) -> None:
    """LDPv2's convolution alone, without the value that it is added to."""
    conv = next(node for node in model.graph.node if node.name == "projector.peg.peg.0")
    (add,) = (node for node in model.graph.node if node.op_type == "Add" and conv.output[0] in node.input)
    rewire(model, add.output[0], conv.output[0])


def stride_for_average(model: onnx.ModelProto) -> None:
    """Every second pixel in place of the mean of four."""
    (pool,) = (node for node in model.graph.node if node.op_type == "AveragePool")
    for attribute in pool.attribute:
        if attribute.name == "kernel_shape":
            attribute.ints[:] = [1, 1]


def smaller_epsilon(model: onnx.ModelProto) -> None:
    """RMSNorm's 1e-5 becomes 1e-6."""
    norms = {node.output[0] for node in model.graph.node if node.op_type == "ReduceMean"}
    names = {node.input[1] for node in model.graph.node if node.op_type == "Add" and node.input[0] in norms}
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(numpy_helper.from_array(np.array(1e-6, np.float32), tensor.name))


def larger_layer_norm_epsilon(model: onnx.ModelProto) -> None:
    """A hundred times that of the model."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                attribute.f *= 100


def _insert(model: onnx.ModelProto, at: int, nodes: list[onnx.NodeProto]) -> None:
    whole = list(model.graph.node)
    whole[at:at] = nodes
    del model.graph.node[:]
    model.graph.node.extend(whole)
