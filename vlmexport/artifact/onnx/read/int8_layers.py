"""What the file of an int8 graph holds, layer by layer: levels, scales and zero points, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from vlmexport.artifact.bundle.inside import refuse_outside
from vlmexport.artifact.onnx.passes import fold_batch_norm, fuse_bias
from vlmexport.quantize.products import OPERATORS

F32 = npt.NDArray[np.float32]
Parameters = tuple[float, int]
"""Scale and zero point of an activation."""

REST = ".of_rest"
"""How the second product of a layer is named that reads its input as two int8 terms."""


@dataclass(frozen=True)
class Int8Layer:
    """One product by an int8 weight.

    Attributes:
        path: of its module in the float model.
        held: levels of its weight, their scale and their zero point.
        axis: of the scales.
        is_product: a matrix product, which holds its weight transposed; else a convolution.
        written, read: how its input is quantized, and how it is taken back.
        terms: 2 where the input is read as two int8 terms.
        divisor: name and values of the norm's weight that makes its input's columns; None where no norm does.
        maker: path of the int8 layer whose outputs are its input's columns, times a gate; None where there is none.
        has_batch_norm: one was folded into it.
    """

    path: str
    held: tuple[ir.Value | None, ...]
    axis: int
    is_product: bool
    written: Parameters
    read: Parameters
    terms: int
    divisor: tuple[str, F32] | None
    maker: str | None
    has_batch_norm: bool

    def weight(self) -> tuple[F32, F32]:
        """Read from the file: f32 [outputs, inputs], or [outputs, inputs, height, width], and each output's step."""
        levels, scale, zero = (np.asarray(_constant(value), np.float32) for value in self.held)
        shape = [-1 if i == self.axis and scale.ndim else 1 for i in range(levels.ndim)]
        values = (levels - zero.reshape(shape)) * scale.reshape(shape)
        if self.is_product:
            values = np.ascontiguousarray(values.T)
        return values, np.broadcast_to(scale, values.shape[:1])


def int8_layers(path: Path) -> Iterator[Int8Layer]:
    """In the graph's order; weights are read when they are asked for."""
    graph = _graph(path)
    names = {node.name for node in graph}
    for node in graph:
        layer, taken = str(node.name), _operands(node)
        if taken is None or layer.endswith(REST):
            continue
        (levels, *read), held, axis = taken
        there = _producer(levels)
        if there is None or not _is_constant(held[0]):
            continue
        source = there.inputs[0]
        yield Int8Layer(
            layer, held, axis, node.op_type not in ("Gemm", "Conv"), _parameters(there.inputs[1:]), _parameters(read),
            2 if f"{layer}{REST}" in names else 1,
            _norm_of(source), _maker_of(source), f"{layer}{fold_batch_norm.BIAS}" in graph.initializers,
        )  # fmt: skip


Operand = tuple[ir.Value | None, ...]
"""Levels, scale and zero point."""


def _operands(node: ir.Node) -> tuple[Operand, Operand, int] | None:
    """Input and weight of a product by an int8 weight, and the weight's axis of scales; None for another node."""
    if node.op_type == fuse_bias.OPERATOR and len(node.inputs) >= 6 and None not in node.inputs[:6]:
        levels, weight, step, steps, zero, zeros = node.inputs[:6]
        return (levels, step, zero), (weight, steps, zeros), 1
    if node.op_type not in OPERATORS:
        return None
    back, held = (_dequantized(value) for value in node.inputs[:2])
    if back is None or held is None:
        return None
    return tuple(back.inputs), tuple(held.inputs), held.attributes.get_int("axis", 1)


def _graph(path: Path) -> ir.Graph:
    """A stranger's, whose weights are read from files beside it alone.

    A file may be a link into the Hub's cache, or have several names: ``read_manifest`` looks where links lead, and
    onnx_ir, which refuses both, looks no further at paths that have no base.
    """
    graph = ir.load(path).graph
    values = {value: value.const_value for value in graph.initializers.values()}
    external = {value: data for value, data in values.items() if isinstance(data, ir.ExternalTensor)}
    refuse_outside((str(data.location) for data in external.values()), path)
    for value, data in external.items():
        value.const_value = ir.ExternalTensor(
            path.parent / data.location, data.offset, data.length, data.dtype, shape=data.shape, name=str(value.name)
        )
    return graph


@dataclass(frozen=True)
class Int8Product:
    """A product that integer kernels compute.

    Attributes:
        weight: i8 [inputs, outputs], where its input is U8 and the file holds it in this form.
        is_unsigned: its input is U8.
    """

    name: str
    is_unsigned: bool
    weight: ir.Value | None

    def can_saturate(self) -> bool:
        """Whether AVX2 without VNNI, which adds two products of U8 and S8 in 16 bits, can compute something else. So it
        is assumed where the file does not hold the weight as integers."""
        if not self.is_unsigned or self.weight is None:
            return self.is_unsigned
        levels = np.asarray(_constant(self.weight), np.int16)
        pairs = np.pad(levels, ((0, len(levels) % 2), (0, 0))).reshape(-1, 2, levels.shape[1])
        sums = (np.maximum(pairs, 0).sum(1), np.minimum(pairs, 0).sum(1))
        return any(int(np.abs(one).max(initial=0)) * 255 > 2**15 - 1 for one in sums)


def int8_products(path: Path) -> Iterator[Int8Product]:
    """Of a graph file; weights are read when they are asked for. Convolutions of more than one pixel are none, because
    ONNX Runtime computes those with float output in float."""
    for node in _graph(path):
        name = str(node.name)
        if node.op_type == "MatMulNBits":  # rounds its input to S8 itself
            yield Int8Product(name, False, None)
        if node.op_type == fuse_bias.OPERATOR:
            levels, weight = node.inputs[:2]
            is_unsigned = levels is None or levels.dtype != ir.DataType.INT8
            yield Int8Product(name, is_unsigned, weight if _is_constant(weight) else None)
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        back, held = (_dequantized(_untransposed(value)) for value in node.inputs[:2])
        if back is not None and held is not None and back.inputs[2] is not None:
            is_held = _is_constant(held.inputs[0]) and held is _dequantized(node.inputs[1])
            weight = held.inputs[0] if is_held else None
            yield Int8Product(name, back.inputs[2].dtype == ir.DataType.UINT8, weight)


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    node = _producer(value)
    return node.inputs[0] if node is not None and node.op_type == "Transpose" else value


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    node = _producer(value)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _parameters(values: Sequence[ir.Value | None]) -> Parameters:
    scale, zero = (_constant(value) for value in values)
    return float(scale.item()), int(zero.item())


def _constant(value: ir.Value | None) -> npt.NDArray[np.generic]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _norm_of(source: ir.Value | None) -> tuple[str, F32] | None:
    """The weight of the norm that makes a value."""
    node = _producer(source)
    if node is None or node.op_type not in ("LayerNormalization", "Mul"):
        return None
    for value in node.inputs:
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 1:
            return str(value.name), np.asarray(value.const_value.numpy(), np.float32)
    return None


def _maker_of(source: ir.Value | None) -> str | None:
    """Of the two factors of a value, the one that is an int8 layer's output; the gate has passed an activation."""
    node = _producer(source)
    for factor in node.inputs if node is not None and node.op_type == "Mul" else ():
        made = _producer(factor)
        sums = made.inputs if made is not None and made.op_type == "Add" else (factor,)  # its bias, or its two terms
        for product in map(_producer, sums):
            if product is not None and product.op_type == "MatMul" and _dequantized(product.inputs[1]) is not None:
                return str(product.name).removesuffix(REST)
    return None
