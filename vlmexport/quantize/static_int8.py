"""Static int8 by Q/DQ pairs around the weight products of a float graph.

Only weight products: LayerNorm, GELU, Softmax, attention products, gates and residuals stay in float, and so does
every output, because ONNX Runtime fuses DQ → MatMul ← DQ to an integer product with float output. It does so while some
dimension of the input is symbolic: where all are fixed it first merges product and bias to a Gemm, which stays float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vlmexport.errors import NotEnoughData, VlmExportError
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import F32, Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme


@dataclass
class Coverage:
    """What became of a graph's weights."""

    int8: dict[str, int] = field(default_factory=dict)
    """Layer → float bytes of its weight."""

    twice: dict[str, str] = field(default_factory=dict)
    """Of those, layers that read their input as two int8 terms, and why."""

    pair_max: dict[str, int] = field(default_factory=dict)
    """Of those, layers whose pairs of weights are bounded (``Scheme.pair_max``)."""

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
    model: ir.Model,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    keep: Callable[[Product], str | None] = kept_by_kind,
    twice: Mapping[str, str] | None = None,
    pair_max: Mapping[str, int] | None = None,
) -> Coverage:
    """Insert Q/DQ pairs, in place.

    Args:
        model: a clean float graph (``artifact.graph.clean``).
        ranges: layer path → range of its input.
        keep: why a product stays in float, None to quantize it.
        twice: layers whose input becomes two int8 terms, and why: x ≈ a + b, b the rounding error of a, so that
            x·W = a·W + b·W. About 16 bits of input for one int8 weight and twice the products; ``ranges`` of such
            layers must clip nothing, because b covers half a step of a.
        pair_max: layers whose pairs of weights are bounded, and by what.

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
        if twice is not None and product.path in twice and target.node.op_type == "MatMul":
            coverage.twice[product.path] = twice[product.path]
            pairs.split_input(target, ranges[product.path])
        else:
            pairs.quantize_input(target, ranges[product.path])
        bound = pair_max.get(product.path) if pair_max is not None else None
        if bound is not None:
            coverage.pair_max[product.path] = bound
        pairs.quantize_weight(target, scheme.with_pairs(bound))
    left = [product.path for product in products(model) if product.path not in coverage.float32]
    if left:
        raise VlmExportError(
            f"{len(left)} layers stayed in float unasked: {', '.join(left[:4])}", "report this with the config.json"
        )
    return coverage


class _Pairs:
    """Q/DQ pairs of one graph. Layers that read the same value with the same parameters share its Q, but each product
    has a DQ of its own: ONNX Runtime does not fuse one that several products read."""

    def __init__(self, model: ir.Model, scheme: Scheme) -> None:
        self._graph = model.graph
        self._scheme = scheme
        self._made: dict[tuple[int, float, int], tuple[ir.Value, list[ir.Value]]] = {}

    def quantize_input(self, product: Product, span: Range) -> None:
        parameters = span.parameters(self._scheme)
        product.node.replace_input_with(0, self._pair(product, self._source(product), parameters, "input"))

    def split_input(self, product: Product, span: Range) -> None:
        """x·W → a·W + b·W; the weight of both is quantized with the product's."""
        source, node, parameters = self._source(product), product.node, span.parameters(self._scheme)
        rounded = self._pair(product, source, parameters, "input", "rounded")
        rest = self._node("Sub", [source, rounded], f"{product.path}.rest", node)
        half = parameters[0] / 2
        second = self._pair(product, rest, Range(-half, half).parameters(self._scheme), "rest")
        other = ir.node("MatMul", [second, product.weight], name=f"{product.path}.of_rest")
        total = ir.node("Add", [node.outputs[0], other.outputs[0]], name=f"{product.path}.sum")
        other.outputs[0].name, result = f"{product.path}.of_rest", total.outputs[0]
        old = node.outputs[0]
        result.name, result.shape, result.type = old.name, old.shape, old.type
        old.name = f"{product.path}.of_input"
        self._graph.insert_after(node, [other, total])
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        total.replace_input_with(0, old)
        node.replace_input_with(0, self._pair(product, source, parameters, "input"))

    def _source(self, product: Product) -> ir.Value:
        source = product.node.inputs[0]
        assert source is not None
        return source

    def _pair(
        self, product: Product, source: ir.Value, steps: tuple[float, int], name: str, result_name: str = "dq"
    ) -> ir.Value:
        scale, zero = steps
        key, path = (id(source), scale, zero), f"{product.path}.{name}"
        if key not in self._made:
            kind = np.int8 if self._scheme.signed else np.uint8
            parameters = self._constants(path, np.array(scale, np.float32), np.array(zero, kind))
            quantized = self._node("QuantizeLinear", [source, *parameters], f"{path}_q", product.node)
            quantized.shape, quantized.type = source.shape, ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))
            self._made[key] = quantized, parameters
        quantized, parameters = self._made[key]
        result = self._node("DequantizeLinear", [quantized, *parameters], f"{path}_{result_name}", product.node)
        result.shape, result.type = source.shape, ir.TensorType(ir.DataType.FLOAT)
        return result

    def quantize_weight(self, product: Product, scheme: Scheme) -> None:
        tensor, axis = product.weight.const_value, product.output_axis
        assert tensor is not None
        scales = weight_scales(np.asarray(tensor.numpy(), np.float32), axis, scheme)
        weight = _register(self._graph, f"{product.path}.weight_int8", _levels(tensor, scales, axis, scheme))
        scales = scales if scheme.per_channel else scales.reshape(())
        parameters = self._constants(f"{product.path}.weight", scales, np.zeros(scales.shape, np.int8))
        attributes = {"axis": axis} if scheme.per_channel else {}
        for user, index in list(product.weight.uses()):
            result = self._node("DequantizeLinear", [weight, *parameters], f"{user.name}.weight_dq", user, attributes)
            result.shape, result.type = weight.shape, ir.TensorType(ir.DataType.FLOAT)
            user.replace_input_with(index, result)
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
    return _register(graph, name, ir.tensor(np.ascontiguousarray(array), name=name))


def _register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)  # type: ignore[arg-type]
    graph.register_initializer(value)
    return value


def _levels(weight: ir.TensorProtocol, scales: F32, axis: int, scheme: Scheme) -> ir.LazyTensor:
    """A weight's int8 values, made when they are written."""

    def make() -> ir.TensorProtocol:
        return ir.tensor(quantize_weight(np.asarray(weight.numpy(), np.float32), scales, axis, scheme))

    return ir.LazyTensor(make, ir.DataType.INT8, weight.shape)  # type: ignore[arg-type]


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
    old.name, result.name = result.name, old.name
    result.shape, result.type = old.shape, old.type
    graph.insert_before(node, chain)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    if not product.weight.uses():
        graph.initializers.pop(str(product.weight.name))
    return Product(product.path, matmul, weight)
