"""SmoothQuant: outlier columns of an input are divided by a scale, and the weight's rows multiplied by it.

The division is folded into what makes the input: a norm's weight, or the linear layer whose output a gate multiplies
(``down_proj`` of a SwiGLU, where the outliers of Llamas are worst). Source: Xiao et al. 2022, arXiv:2211.10438.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlmexport.quantize.products import Product, products, weight_of
from vlmexport.quantize.ranges import F32, F64


@dataclass(frozen=True)
class Group:
    """Matrix products that read one value, and the initializers whose last axis makes its columns (none: no fold)."""

    members: tuple[Product, ...]
    makers: tuple[ir.Value, ...]

    @property
    def weights(self) -> list[F32]:
        """f32 [columns, outputs] of each member."""
        return [array(member.weight) for member in self.members]


def groups(model: ir.Model, keep: Callable[[Product], str | None]) -> Iterator[Group]:
    """Every matrix product that is to be int8, with those that read the same value."""
    by_source: dict[int, list[Product]] = {}
    for product in products(model):
        if product.node.op_type == "MatMul" and len(product.shape) == 2 and keep(product) is None:
            by_source.setdefault(id(product.node.inputs[0]), []).append(product)
    for members in by_source.values():
        source = members[0].node.inputs[0]
        assert source is not None
        alone = not source.is_graph_output() and len(source.uses()) == len(members)
        own = all(len(member.weight.uses()) == 1 for member in members)
        yield Group(tuple(members), makers(source) if alone and own else ())


def fold(group: Group, scales: F64) -> None:
    """Divide a group's input by f64 [columns] scales and multiply the weights' rows by them, in place.

    Guarantees: the same function of the graph's inputs, up to float rounding.
    """
    divisor = scales.astype(np.float32)
    for maker in group.makers:
        _scale(maker, np.reciprocal(divisor))
    for member in group.members:
        _scale(member.weight, divisor[:, None])


def makers(source: ir.Value) -> tuple[ir.Value, ...]:
    """Initializers that scale the columns of a value; none where it cannot be scaled without a new node."""
    node = source.producer()
    if node is None:
        return ()
    if node.op_type == "LayerNormalization":
        return _own(*(value for value in node.inputs[1:] if value is not None))
    if node.op_type != "Mul":
        return ()
    for value in node.inputs:
        if value is not None and value.const_value is not None and len(value.const_value.shape) == 1:
            return _own(value)
    for value in node.inputs:
        if value is not None and len(value.uses()) == 1 and (found := _linear(value)):
            return _own(*found)
    return ()


def _linear(value: ir.Value) -> tuple[ir.Value, ...]:
    """Weight and bias of the linear layer whose output a value is."""
    node = value.producer()
    bias: tuple[ir.Value, ...] = ()
    if node is not None and node.op_type == "Add":
        constants = [v for v in node.inputs if v is not None and v.const_value is not None]
        others = [v for v in node.inputs if v is not None and v.const_value is None]
        if len(constants) != 1 or len(others[0].uses()) != 1:
            return ()
        node, bias = others[0].producer(), (constants[0],)
    weight = weight_of(node) if node is not None and node.op_type == "MatMul" else None
    return (weight, *bias) if weight is not None else ()


def _own(*values: ir.Value) -> tuple[ir.Value, ...]:
    return values if all(v.const_value is not None and len(v.uses()) == 1 for v in values) else ()


def array(value: ir.Value) -> F32:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def _scale(value: ir.Value, factor: F32) -> None:
    """Multiply a weight, each time it is read."""
    old = value.const_value
    assert old is not None

    def scaled() -> ir.TensorProtocol:
        return ir.tensor(np.asarray(old.numpy(), np.float32) * factor)

    value.const_value = ir.LazyTensor(scaled, ir.DataType.FLOAT, old.shape, name=value.name)  # type: ignore[arg-type]
