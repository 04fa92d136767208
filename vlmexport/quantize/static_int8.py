"""Static int8 by Q/DQ pairs around the weight products of a float graph.

Only weight products: LayerNorm, GELU, Softmax, attention products, gates and residuals stay in float, and so does
every output, because ONNX Runtime fuses DQ → MatMul ← DQ to an integer product with float output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vlmexport.errors import NotEnoughData, VlmExportError
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme


@dataclass
class Coverage:
    """What became of a graph's weights."""

    int8: dict[str, int] = field(default_factory=dict)
    """Layer → float bytes of its weight."""

    float32: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Layer → float bytes of its weight, and why it stayed in float."""

    @property
    def share(self) -> float:
        """Part of the weight bytes that is int8."""
        done, left = sum(self.int8.values()), sum(size for size, _ in self.float32.values())
        return done / (done + left) if done + left else 0.0


def kept_by_kind(product: Product) -> str | None:
    """Why a product stays in float because of what it is; None where int8 serves it.

    Depthwise kernels and gates hold next to no weights, and without a quantized output ONNX Runtime would compute
    them in float from dequantized values anyway. The patch embedding sees raw pixels.
    """
    if product.is_first:
        return "patch embedding"
    if product.is_depthwise:
        return "depthwise"
    if product.is_gate:
        return "gate"
    return None


def quantize(
    model: ir.Model, ranges: Mapping[str, Range], scheme: Scheme, keep: Callable[[Product], str | None] = kept_by_kind
) -> Coverage:
    """Insert Q/DQ pairs, in place.

    Args:
        model: a clean float graph (``artifact.graph.clean``).
        ranges: layer path → range of its input.
        keep: why a product stays in float, None to quantize it.

    Returns:
        what is int8 and what is not.

    Raises:
        NotEnoughData: a layer without a range.
        VlmExportError: a layer is still in float without a reason.
    """
    coverage = Coverage()
    pairs = _Pairs(model, scheme)
    for product in products(model):
        if reason := keep(product):
            coverage.float32[product.path] = (product.bytes, reason)
            continue
        if product.path not in ranges:
            raise NotEnoughData(
                f"{product.path} has no activation range", "calibrate with this checkpoint, or list it in float_layers"
            )
        coverage.int8[product.path] = product.bytes
        target = pointwise_to_matmul(model, product) if product.is_pointwise else product
        pairs.quantize_input(target, ranges[product.path])
        pairs.quantize_weight(target)
    left = [product.path for product in products(model) if product.path not in coverage.float32]
    if left:
        raise VlmExportError(
            f"{len(left)} layers stayed in float unasked: {', '.join(left[:4])}", "report this with the config.json"
        )
    return coverage


class _Pairs:
    """Q/DQ pairs of one graph; layers that read the same value with the same parameters share one."""

    def __init__(self, model: ir.Model, scheme: Scheme) -> None:
        self._graph = model.graph
        self._scheme = scheme
        self._made: dict[tuple[int, float, int], ir.Value] = {}

    def quantize_input(self, product: Product, span: Range) -> None:
        source = product.node.inputs[0]
        assert source is not None
        scale, zero = span.parameters(self._scheme)
        key = (id(source), scale, zero)
        if key not in self._made:
            kind = np.int8 if self._scheme.signed else np.uint8
            parameters = self._constants(f"{product.path}.input", np.array(scale, np.float32), np.array(zero, kind))
            quantized = self._node("QuantizeLinear", [source, *parameters], f"{product.path}.input_q", product.node)
            result = self._node("DequantizeLinear", [quantized, *parameters], f"{product.path}.input_dq", product.node)
            quantized.shape, quantized.type = source.shape, ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))
            result.shape, result.type = source.shape, ir.TensorType(ir.DataType.FLOAT)
            self._made[key] = result
        product.node.replace_input_with(0, self._made[key])

    def quantize_weight(self, product: Product) -> None:
        tensor, axis = product.weight.const_value, product.output_axis
        assert tensor is not None
        array = np.asarray(tensor.numpy(), np.float32)
        scales = weight_scales(array, axis, self._scheme)
        levels = quantize_weight(array, scales, axis, self._scheme)
        scales = scales if self._scheme.per_channel else scales.reshape(())
        weight = self._initializer(f"{product.path}.weight_int8", levels)
        parameters = self._constants(f"{product.path}.weight", scales, np.zeros(scales.shape, np.int8))
        attributes = {"axis": axis} if self._scheme.per_channel else {}
        result = self._node("DequantizeLinear", [weight, *parameters], f"{product.path}.weight_dq", product.node,
                            attributes)  # fmt: skip
        result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape(levels.shape)
        product.node.replace_input_with(1, result)
        if not product.weight.uses():
            self._graph.initializers.pop(str(product.weight.name))

    def _constants(self, name: str, scale: np.ndarray, zero: np.ndarray) -> list[ir.Value]:
        return [self._initializer(f"{name}_scale", scale), self._initializer(f"{name}_zero_point", zero)]

    def _initializer(self, name: str, array: np.ndarray) -> ir.Value:
        return initializer(self._graph, name, array)

    def _node(
        self, op: str, inputs: list[ir.Value], name: str, before: ir.Node, attributes: dict[str, int] | None = None
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes or {}, name=name)
        node.outputs[0].name = name
        self._graph.insert_before(before, node)
        return node.outputs[0]


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to a graph."""
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def pointwise_to_matmul(model: ir.Model, product: Product) -> Product:
    """A 1x1 convolution as a product over the last axis, which ONNX Runtime computes in int8 with float output.

    Guarantees: the same values; the new node has the convolution's name.
    """
    graph, node = model.graph, product.node
    source, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    tensor = product.weight.const_value
    assert source is not None
    assert tensor is not None
    array = np.asarray(tensor.numpy(), np.float32)[:, :, 0, 0].T
    weight = initializer(graph, f"{product.path}.weight_matrix", array)
    last = ir.node("Transpose", [source], {"perm": [0, 2, 3, 1]}, name=f"{product.path}.channels_last")
    matmul = ir.node("MatMul", [last.outputs[0], weight], name=product.path)
    chain = [last, matmul]
    if bias is not None:
        chain.append(ir.node("Add", [matmul.outputs[0], bias], name=f"{product.path}.add_bias"))
    chain.append(ir.node("Transpose", [chain[-1].outputs[0]], {"perm": [0, 3, 1, 2]},
                         name=f"{product.path}.channels_first"))  # fmt: skip
    for new in chain:
        new.outputs[0].name = f"{new.name}.output"
    old, result = node.outputs[0], chain[-1].outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(node, chain)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if not product.weight.uses():
        graph.initializers.pop(str(product.weight.name))
    return Product(product.path, matmul, weight)
