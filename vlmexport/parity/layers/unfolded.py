"""Int8 weights as the float model takes them: what an export folds into a weight before it is rounded, undone.

What was folded is known from the graph: SmoothQuant's scales by the norm that was divided by them, or, where that was
a linear layer, by least squares from both weights; a batch norm's by least squares too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmexport.artifact.onnx.passes.attach_weights import find, read
from vlmexport.artifact.onnx.read.int8_layers import Int8Layer, int8_layers
from vlmexport.errors import CheckpointError
from vlmexport.source.checkpoint import Checkpoint

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Unfolded:
    """A layer's int8 weight beside the float one, f32 [outputs, inputs] or [outputs, inputs, height, width].

    Attributes:
        step: between two levels, broadcast to the weight's shape.
        scales: that its inputs are divided by, f32 [inputs]; None where they are not.
        is_estimated: something that was folded is known by least squares only.
    """

    layer: Int8Layer
    held: F32
    weight: F32
    step: F32
    scales: F32 | None
    is_estimated: bool


def unfolded(path: Path, smoothed: set[str], checkpoint: Checkpoint) -> Iterator[Unfolded | str]:
    """The int8 layers of a graph, the last one first: a smoothed layer tells what the one before it was divided by.
    Of a layer whose float weight the checkpoint does not hold in this shape, the path.

    Args:
        smoothed: paths of the layers that were smoothed.
    """
    divided: dict[str, F32] = {}
    for layer in reversed(list(int8_layers(path))):
        try:
            yield _unfolded(layer, layer.path in smoothed, divided, checkpoint)
        except (CheckpointError, ValueError):  # no such tensor, or one of another shape: something else was folded
            yield layer.path


def _unfolded(layer: Int8Layer, is_smoothed: bool, divided: dict[str, F32], checkpoint: Checkpoint) -> Unfolded:
    held, step = layer.weight()
    weight = read(find(checkpoint, f"{layer.path}.weight")).reshape(held.shape)
    steps = np.broadcast_to(step.reshape(-1, *[1] * (held.ndim - 1)), held.shape)
    scales: F32 | None = None
    is_estimated = layer.path in divided or layer.has_batch_norm
    if is_smoothed and layer.divisor is not None:
        name, values = layer.divisor
        # Where the norm's weight is 0 its quotient says nothing.
        scales = np.divide(read(find(checkpoint, name)), values, out=_ratio(held, weight, (0,))[0], where=values != 0)
    elif is_smoothed:
        scales, is_estimated = _ratio(held, weight, (0,))[0], True
        if layer.maker is not None:
            divided[layer.maker] = scales
    if scales is not None:
        held, steps = (held / scales).astype(np.float32), (steps / np.abs(scales)).astype(np.float32)
    if layer.path in divided or layer.has_batch_norm:
        factor: F32 = np.reciprocal(_ratio(held, weight, tuple(range(1, weight.ndim))))
        if layer.path in divided:
            # Each output's share is noisy in both estimates; what they agree on must be 1, and is left in.
            factor *= float(np.median(divided[layer.path] / factor[:, 0]))
        held, steps = held * factor, steps * np.abs(factor)
    return Unfolded(layer, held, weight, steps, scales, is_estimated)


def _ratio(held: F32, weight: F32, axes: tuple[int, ...]) -> F32:
    """Least squares: what the weight was multiplied by, one number along ``axes``; 1 where the weight is 0."""
    both = (held.astype(np.float64) * weight).sum(axes, keepdims=True)
    power = np.square(weight.astype(np.float64)).sum(axes, keepdims=True)
    found = np.divide(both, power, out=np.ones_like(power), where=power > 0)
    return np.where(found == 0, 1.0, found).astype(np.float32)
