"""The nodes of an ONNX graph that multiply by a weight, and what kind of product each one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

OPERATORS = frozenset({"MatMul", "Gemm", "Conv"})
_COLOURS = 3


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a float weight. ``path``: the module's path in ``model.VLM``, the node's name too."""

    path: str
    node: ir.Node
    weight: ir.Value

    @property
    def bytes(self) -> int:
        """Size of the float weight."""
        return int(tensor.nbytes) if (tensor := self.weight.const_value) is not None else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, as the graph holds it."""
        return tuple(int(size) for size in self.weight.shape or ())  # type: ignore[arg-type]

    @property
    def output_axis(self) -> int:
        """The weight's axis of output channels."""
        if self.node.op_type == "Conv":
            return 0
        transposed = self.node.attributes.get_int("transB", 0) if self.node.op_type == "Gemm" else 0
        return len(self.shape) - 2 if transposed else len(self.shape) - 1

    @property
    def is_depthwise(self) -> bool:
        """One input channel for each output channel."""
        return self.node.op_type == "Conv" and self.shape[1] == 1 and self.node.attributes.get_int("group", 1) > 1

    @property
    def is_pointwise(self) -> bool:
        """A convolution of one pixel with stride 1: a matrix product over channels."""
        strides = self.node.attributes.get_ints("strides", [1, 1])
        group = self.node.attributes.get_int("group", 1)
        return self.node.op_type == "Conv" and self.shape[2:] == (1, 1) and list(strides) == [1, 1] and group == 1

    @property
    def is_gate(self) -> bool:
        """A convolution over a map of one pixel, as squeeze-and-excitation has."""
        source = self.node.inputs[0]
        shape = source.shape if source is not None else None
        return self.node.op_type == "Conv" and shape is not None and tuple(shape)[2:] == (1, 1)

    @property
    def is_first(self) -> bool:
        """A convolution of the graph's own input, or of three colours (tiles of it): the patch embedding."""
        source = self.node.inputs[0]
        if self.node.op_type != "Conv" or source is None:
            return False
        return source.is_graph_input() or self.shape[1] == _COLOURS


def weight_of(node: ir.Node) -> ir.Value | None:
    """The weight of a product; None for any other node, products of two activations included."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        return None
    weight = node.inputs[1]
    return weight if weight is not None and weight.const_value is not None else None


def products(model: ir.Model) -> Iterator[Product]:
    """Products by a float weight, in the graph's order."""
    for node in list(model.graph):
        weight = weight_of(node)
        if weight is not None and node.name is not None and weight.dtype == ir.DataType.FLOAT:
            yield Product(node.name, node, weight)
