"""The last view of a picture in tiles, made again from the tiles inside the graph.

transformers.js makes it by a bilinear filter without antialiasing, of the picture that it cut. Where the tiles are
right (the picture had its final size), the view follows from them: put together and resized by Lanczos as Pillow does,
to 8 bits after each way. A graph is not told how the tiles stand. Of the grids with as many tiles it takes the one
whose view is nearest to the client's; where none is near, as of two pictures in a row, the client's stays.

A view that is right stays to the bit, and so do views that stand along the batch (axis 0): a runtime that computes a
few at a time stacks them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from PIL import Image

from vlmexport.artifact.onnx.trace.components import OPSET
from vlmexport.checkpoint.spec import ImageProcessorSpec

_REACH, _BITS = 3, 22  # of Lanczos, of Pillow's integer weights
_NEAR = 16.0
"""Levels, on average: of 51 pictures the right view was up to 14.7 away, a wrong one 17.2 or more."""

_RIGHT = 0.05
"""Levels, on average: made in single precision, a few pixels of a right view are a level away."""

_MANY = 1 << 20
F32 = npt.NDArray[np.float32]
INPUT = "pixel_values"


def can_repair(spec: ImageProcessorSpec) -> bool:
    """Whether pictures are cut into tiles, of one that is as long as some of them, by Lanczos."""
    longest = spec.size.longest_edge
    if spec.mode != "tiles" or longest is None or not (spec.do_resize and spec.do_image_splitting):
        return False
    return spec.resample == Image.Resampling.LANCZOS and longest % spec.side == 0 and longest > spec.side


def prepend(model: ir.Model, spec: ImageProcessorSpec) -> None:
    """Let a vision graph make the last of its views, ``pixel_values`` f32 [batch, views, 3, side, side].

    Args:
        spec: one that ``can_repair``.
    """
    made = ir.from_proto(repairing(spec)).graph
    (given,) = (value for value in model.graph.inputs if value.name == INPUT)
    ir.convenience.replace_all_uses_with(given, made.outputs[0])
    ir.convenience.replace_all_uses_with(made.inputs[0], given)
    nodes, constants = list(made), list(made.initializers.values())
    made.outputs.clear()
    made.remove(nodes)
    made.initializers.clear()
    for value in constants:
        model.graph.register_initializer(value)
    model.graph.insert_before(model.graph[0], nodes)


def repairing(spec: ImageProcessorSpec) -> ModelProto:
    """A graph of its own: ``pixel_values`` f32 [batch, views, 3, side, side] → the same."""
    longest = spec.size.longest_edge
    assert longest is not None
    most, build = longest // spec.side, _Builder("whole")
    constants = _constants(spec, most)
    tiles = build.add("Slice", [INPUT, "whole_0", "whole_last", "whole_1"])
    told = build.add("Slice", [INPUT, "whole_last", "whole_end", "whole_1"], "told")
    levels = build.add("Div", [build.add("Add", [build.add("Mul", [tiles, "whole_std"]), "whole_mean"]), "whole_scale"])
    build.add("Clip", [build.rounded(levels), "whole_low", "whole_high"], "levels")
    sizes = build.add("Mul", [build.add("Shape", [tiles], start=0, end=2), "whole_places"])
    count = build.add("ReduceSum", [sizes], keepdims=0)  # of tiles, of one picture
    best, distance = told, "whole_near"
    for rows, columns in _grids(most):
        fits = build.add("Equal", [count, f"whole_is{rows * columns}"])
        found, far = f"whole_{rows}x{columns}", f"whole_{rows}x{columns}_far"
        build.nodes.append(helper.make_node(
            "If", [fits], [found, far], found, then_branch=_whole(rows, columns), else_branch=_told(found)
        ))  # fmt: skip
        nearer = build.add("Less", [far, distance])
        best, distance = build.add("Where", [nearer, found, best]), build.add("Where", [nearer, far, distance])
    shape: list[int | str | None] = ["batch_size", "num_images", 3, spec.side, spec.side]
    wrong = build.add("Greater", [distance, "whole_right"])
    views = build.add("Concat", [tiles, build.add("Where", [wrong, best, told])], "views", axis=1)
    graph = helper.make_graph(
        build.nodes, "whole_view", [_value(INPUT, shape)], [_value(views, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


class _Builder:
    """Nodes of one graph; names begin with its own."""

    def __init__(self, name: str) -> None:
        self.name, self.nodes = name, list[NodeProto]()

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """A node, and what it gives."""
        made = f"{self.name}_{output or f'node{len(self.nodes)}'}"
        self.nodes.append(helper.make_node(kind, inputs, [made], made, **attributes))
        return made

    def rounded(self, value: str) -> str:
        """Half goes up, as in Pillow."""
        return self.add("Floor", [self.add("Add", [value, "whole_half"])])


def _constants(spec: ImageProcessorSpec, most: int) -> dict[str, npt.NDArray[Any]]:
    side = spec.side
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (spec.mean, spec.std))
    level = spec.rescale_factor / float(np.mean(spec.std))
    found: dict[str, npt.NDArray[Any]] = {
        "whole_0": np.array([0]), "whole_1": np.array([1]), "whole_last": np.array([-1]),
        "whole_end": np.array([_MANY]), "whole_half": np.array(0.5, np.float32), "whole_low": np.array(0, np.float32),
        "whole_high": np.array(255, np.float32), "whole_near": np.array(_NEAR * level, np.float32),
        "whole_right": np.array(_RIGHT * level, np.float32), "whole_mean": mean,
        "whole_std": std, "whole_scale": np.array(spec.rescale_factor, np.float32),
        "whole_places": np.array([_MANY, 1]), "whole_view": np.array([1, 1, 3, side, side]),
    }  # fmt: skip
    for factor in range(2, most + 1):
        kernel, inverse = lanczos(factor, side)
        found |= {
            f"whole_across{factor}": kernel.reshape(1, 1, 1, -1),
            f"whole_down{factor}": kernel.reshape(1, 1, -1, 1),
        }
        found |= {f"whole_right{factor}": inverse.reshape(1, 1, 1, -1)}
        found |= {f"whole_below{factor}": inverse.reshape(1, 1, -1, 1)}
    for rows, columns in _grids(most):
        found[f"whole_is{rows * columns}"] = np.array(_MANY + rows * columns)
        found[f"whole_grid{rows}x{columns}"] = np.array([rows, columns, 3, side, side])
        found[f"whole_size{rows}x{columns}"] = np.array([3, 1, rows * side, columns * side])
    return found


def _grids(most: int) -> list[tuple[int, int]]:
    """Rows and columns of tiles."""
    sides = range(1, most + 1)
    return [(rows, columns) for rows in sides for columns in sides if rows * columns > 1]


def lanczos(factor: int, side: int) -> tuple[F32, F32]:
    """Pillow's weights of one pixel that is made of ``factor`` times as many; by what the sums of each of ``side``
    pixels are multiplied, since some weights lie beyond the edges."""
    before, after = _outside(factor)
    at = (np.arange(2 * _REACH * factor) - before + (1 - factor) / 2) / factor
    kernel = np.sinc(at) * np.sinc(at / _REACH) * (abs(at) < _REACH)
    kernel /= kernel.sum()
    inside = np.correlate(np.pad(np.ones(side * factor), (before, after)), kernel, "valid")[::factor]
    return (np.rint(kernel * 2**_BITS) / 2**_BITS).astype(np.float32), (1 / inside).astype(np.float32)


def _outside(factor: int) -> tuple[int, int]:
    """Pixels that the first one reads before the edge, and the last one behind it."""
    outside = (2 * _REACH - 1) * factor
    return outside // 2, outside - outside // 2


def _whole(rows: int, columns: int) -> GraphProto:
    """Tiles in this grid → the view of them all, and how far it is from the client's."""
    build = _Builder(f"whole_{rows}x{columns}")
    grid = build.add("Reshape", ["whole_levels", f"whole_grid{rows}x{columns}"])
    stood = build.add("Transpose", [grid], perm=[2, 0, 3, 1, 4])
    last = build.add("Reshape", [stood, f"whole_size{rows}x{columns}"])
    ways = [("across", "right", columns), ("down", "below", rows)]
    if rows - 1 > 2 * (columns - 1):  # Pillow 13 takes the long way first
        ways.reverse()
    for way, edge, factor in ways:
        if factor == 1:
            continue
        before, after = _outside(factor)
        pads, strides = (
            ([0, before, 0, after], [1, factor]) if way == "across" else ([before, 0, after, 0], [factor, 1])
        )
        summed = build.add("Conv", [last, f"whole_{way}{factor}"], pads=pads, strides=strides)
        levels = build.rounded(build.add("Mul", [summed, f"whole_{edge}{factor}"]))
        last = build.add("Clip", [levels, "whole_low", "whole_high"])
    scaled = build.add("Mul", [build.add("Reshape", [last, "whole_view"]), "whole_scale"])
    view = build.add("Div", [build.add("Sub", [scaled, "whole_mean"]), "whole_std"], "found")
    apart = build.add("Abs", [build.add("Sub", [view, "whole_told"])])
    far = build.add("ReduceMean", [apart], "apart", keepdims=0)
    return helper.make_graph(build.nodes, build.name, [], [_value(view, [None] * 5), _value(far, [])])


def _told(name: str) -> GraphProto:
    """The client's view, which is not near enough to itself to be taken for another."""
    ends = [("whole_told", f"{name}_same", [None] * 5), ("whole_near", f"{name}_near", [])]
    nodes = [helper.make_node("Identity", [source], [target], target) for source, target, _ in ends]
    return helper.make_graph(nodes, f"{name}_told", [], [_value(target, shape) for _, target, shape in ends])


def _value(name: str, shape: Sequence[int | str | None]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
