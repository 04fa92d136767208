"""Scales and zero points: of an activation from its range, of weights from the weights. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmexport.quantize.schemes import Scheme

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """Reals that the integers of an activation span; zero is always inside."""

    low: float
    high: float

    def parameters(self, scheme: Scheme) -> tuple[float, int]:
        """Scale (float32 value) and zero point, as torch's observers compute them."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = float(np.float32(max((high - low) / scheme.steps, scheme.eps)))
        zero = scheme.activation_min - round(low / scale)
        return scale, int(np.clip(zero, scheme.activation_min, scheme.activation_max))


def weight_scales(weight: npt.NDArray[np.float32], axis: int, scheme: Scheme) -> npt.NDArray[np.float32]:
    """Symmetric scales of a weight: f32 [output channels], or [1] per tensor.

    The step is largest/127 with −127…127, and 2·largest/255 with −128…127, as torch's observers have it.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others) if scheme.per_channel else np.abs(weight).max(keepdims=True).reshape(1)
    scales = largest.astype(np.float64) / ((scheme.weight_max - scheme.weight_min) / 2)
    found: npt.NDArray[np.float32] = np.maximum(scales, np.finfo(np.float32).eps).astype(np.float32)
    return found


def quantize_weight(
    weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], axis: int, scheme: Scheme
) -> npt.NDArray[np.int8]:
    """Round to nearest even: int8 of the weight's shape."""
    shape = [1] * weight.ndim
    if scheme.per_channel:
        shape[axis] = -1
    levels = np.round(weight / scales.reshape(shape))
    return np.clip(levels, scheme.weight_min, scheme.weight_max).astype(np.int8)
