"""A batch norm behind a convolution becomes part of it: fewer nodes, and int8 weights that hold what is computed.

ONNX Runtime does so itself in float graphs; around Q/DQ pairs it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

F32 = npt.NDArray[np.float32]
BIAS = ".folded_bias"
"""What stands behind a convolution's name in that of the bias that a batch norm gave it."""


@dataclass(frozen=True)
class _Norm:
    """Weight, bias, running mean and running variance of a batch norm, f32 [channels] each when read."""

    parameters: tuple[ir.TensorProtocol, ...]
    eps: float

    def scale_and_shift(self) -> tuple[F32, F32]:
        """What the norm multiplies a channel by, and then adds."""
        weight, bias, mean, variance = (np.asarray(tensor.numpy(), np.float64) for tensor in self.parameters)
        scale = weight / np.sqrt(variance + self.eps)
        return scale.astype(np.float32), (bias - mean * scale).astype(np.float32)


def fold(model: ir.Model) -> int:
    """Fold every batch norm that alone reads a convolution of a constant weight, in place.

    Guarantees: the same function up to float rounding; weights are still read when they are written.

    Returns:
        how many were folded.
    """
    found = [node for node in model.graph if node.op_type == "BatchNormalization"]
    return sum(_fold(model.graph, node) for node in found)


def _fold(graph: ir.Graph, node: ir.Node) -> bool:
    source = node.inputs[0]
    conv = source.producer() if source is not None else None
    if source is None or conv is None or conv.op_type != "Conv" or source.is_graph_output():
        return False
    constants = [value for value in (*conv.inputs[1:], *node.inputs[1:]) if value is not None]
    if len(source.uses()) != 1 or any(v.const_value is None or len(v.uses()) != 1 for v in constants):
        return False
    norm = _Norm(tuple(_tensor(value) for value in node.inputs[1:]), node.attributes.get_float("epsilon", 1e-5))
    weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
    assert weight is not None
    weight.const_value = _scaled(_tensor(weight), norm)
    shift = _shifted(None if bias is None else _tensor(bias), norm)
    added = ir.Value(name=f"{conv.name}{BIAS}", shape=shift.shape, type=weight.type, const_value=shift)
    graph.register_initializer(added)
    inputs = [conv.inputs[0], weight, added]
    folded = ir.Node(conv.domain, conv.op_type, inputs, list(conv.attributes.values()), name=conv.name)
    folded.meta.update(conv.meta)
    result, old, unused = folded.outputs[0], node.outputs[0], [*node.inputs[1:], bias]
    old.name, result.name, result.shape, result.type = f"{old.name}.unfolded", old.name, old.shape, old.type
    graph.insert_before(node, folded)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove([node, conv], safe=True)
    for value in unused:
        if value is not None:
            graph.initializers.pop(str(value.name))
    return True


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    assert value is not None
    assert value.const_value is not None
    return value.const_value


def _scaled(weight: ir.TensorProtocol, norm: _Norm) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        scale, _ = norm.scale_and_shift()
        return ir.tensor(np.asarray(weight.numpy(), np.float32) * scale[:, None, None, None])

    return ir.LazyTensor(make, ir.DataType.FLOAT, weight.shape)  # type: ignore[arg-type]


def _shifted(bias: ir.TensorProtocol | None, norm: _Norm) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        scale, shift = norm.scale_and_shift()
        return ir.tensor(shift if bias is None else np.asarray(bias.numpy(), np.float32) * scale + shift)

    return ir.LazyTensor(make, ir.DataType.FLOAT, norm.parameters[0].shape)  # type: ignore[arg-type]
