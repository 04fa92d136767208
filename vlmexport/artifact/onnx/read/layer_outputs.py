"""Where the layers of a float model end in its ONNX graph: values that are a module's output, by the module's path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from vlmexport.artifact.onnx.passes import fold_batch_norm, fuse_bias

_PRODUCTS = ("MatMul", "MatMulNBits", "Conv", "Gemm", fuse_bias.OPERATOR)
_NORMS = ("LayerNormalization", "Mul", "Gather", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Boundary:
    """The end of a layer.

    Attributes:
        path: of the module.
        value: its output's name in the graph.
        without_bias: the module's bias is added later.
        channels_last: a 1x1 convolution that is a matrix product in the graph.
        heads: where not 0, the outputs of so many heads are in the order of llama.cpp's rotary embedding.
    """

    path: str
    value: str
    without_bias: bool = False
    channels_last: bool = False
    heads: int = 0


def boundaries(path: Path) -> list[Boundary]:
    """Of every module that a graph holds a weight of, in the graph's order. Weights are not read.

    A convolution that a batch norm was folded into gives the norm's output, and is left out.
    """
    graph = onnx.load(path, load_external_data=False).graph
    return list(_found(graph))


def _found(graph: onnx.GraphProto) -> Iterator[Boundary]:
    held = {tensor.name for tensor in graph.initializer}
    sums = {node.name: node.output[0] for node in graph.node if node.op_type == "Add"}
    flat = {node.name for node in graph.node if node.op_type == "Transpose"}
    for node in graph.node:
        if f"{node.name}{fold_batch_norm.BIAS}" in held:
            continue
        if node.op_type in _PRODUCTS and _is_path(node.name):
            value = sums.get(f"{node.name}.sum", node.output[0])  # of both int8 terms of its input
            last = f"{node.name}.channels_last" in flat
            yield Boundary(node.name, value, node.op_type in ("MatMul", "MatMulNBits"), last)
        elif node.op_type in _NORMS:
            weights = [name for name in node.input if name in held and name.endswith(_WEIGHT) and _is_path(name)]
            if len(weights) == 1:
                path = weights[0].removesuffix(_WEIGHT)
                yield Boundary(path, node.output[0], node.op_type == "Mul" and f"{path}.bias" in held)


def _is_path(name: str) -> bool:
    return name.startswith(("vision.", "projector.", "language.")) and not name.endswith(".of_rest")
