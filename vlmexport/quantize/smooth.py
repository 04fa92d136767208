"""SmoothQuant: outlier columns of an input are divided by a scale, and the weight's rows multiplied by it.

The division is folded into what makes the input: a norm's weight, or the linear layer whose output a gate multiplies
(``down_proj`` of a SwiGLU, where the outliers of Llamas are worst). Source: Xiao et al. 2022, arXiv:2211.10438. Here
each group of layers that read one value chooses its own strength, none included, by predicted noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlmexport.calibrate.statistics import LayerStatistics
from vlmexport.quantize.noise import input_error, output_noise, uniform_error
from vlmexport.quantize.products import Product, products, weight_of
from vlmexport.quantize.ranges import F64, Range
from vlmexport.quantize.schemes import Scheme

STRENGTHS = (0.25, 0.5, 0.65, 0.8, 0.95)


@dataclass(frozen=True)
class Smoothed:
    """What became of a layer's input: divided by f64 [columns] ``scales``, it spans ``span``."""

    span: Range
    scales: F64


@dataclass(frozen=True)
class Group:
    """Products that read one value, and the initializers whose last axis makes its columns."""

    members: tuple[Product, ...]
    makers: tuple[ir.Value, ...]


def smooth(
    model: ir.Model,
    layers: Mapping[str, LayerStatistics],
    ranges: Mapping[str, Range],
    scheme: Scheme,
    keep: Callable[[Product], str | None],
) -> dict[str, Smoothed]:
    """Smooth the groups that gain by it, in place.

    Guarantees: the same function of the graph's inputs, up to float rounding.

    Args:
        layers, ranges: by layer path, of the graph as it is.
        keep: why a product stays in float, None where it will be int8.

    Returns:
        the layers that were smoothed.
    """
    found = {}
    for group in groups(model, keep):
        path = group.members[0].path
        if path not in layers or path not in ranges or len(group.makers) == 0:
            continue
        chosen = _choose(group, layers[path], ranges[path], scheme)
        if chosen is None:
            continue
        scales = chosen.scales.astype(np.float32)
        for maker in group.makers:
            _replace(maker, _array(maker) / scales)
        for member in group.members:
            _replace(member.weight, _array(member.weight) * scales[:, None])
            found[member.path] = chosen
    return found


def groups(model: ir.Model, keep: Callable[[Product], str | None]) -> Iterator[Group]:
    """Groups whose readers are int8 products one and all, and whose maker serves them alone."""
    by_source: dict[int, list[Product]] = {}
    for product in products(model):
        if product.node.op_type == "MatMul" and len(product.shape) == 2 and keep(product) is None:
            by_source.setdefault(id(product.node.inputs[0]), []).append(product)
    for members in by_source.values():
        source = members[0].node.inputs[0]
        if source is None or source.is_graph_output() or len(source.uses()) != len(members):
            continue
        if all(len(member.weight.uses()) == 1 for member in members):
            yield Group(tuple(members), makers(source))


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


def _choose(group: Group, layer: LayerStatistics, span: Range, scheme: Scheme) -> Smoothed | None:
    """The strength with the least predicted noise; None for leaving the group as it is."""
    weights = [_array(member.weight) for member in group.members]
    power, largest = layer.importance(), np.maximum(layer.abs_max, 1e-9)
    of_weights = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), 1e-9).astype(np.float64)
    error = input_error(layer.histogram, span, scheme)
    least = sum(output_noise(weight, power, error, scheme) for weight in weights)
    best = None
    for strength in STRENGTHS:
        scales = largest**strength / of_weights ** (1 - strength)
        scales = np.maximum(scales / np.exp(np.log(scales).mean()), 1e-6)
        bound = float((largest / scales).max())
        error = uniform_error(Range(-bound, bound), scheme)
        rows = scales.astype(np.float32)[:, None]
        noise = sum(output_noise(weight * rows, power / scales**2, error, scheme) for weight in weights)
        if noise < least:
            least, best = noise, Smoothed(Range(-bound, bound), scales)
    return best


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float32)


def _replace(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)
