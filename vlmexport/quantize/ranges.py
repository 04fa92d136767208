"""Scales and zero points: of an activation from its range, of weights from the weights. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmexport.quantize.schemes import Scheme

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_MARGIN = 1 + 2.0**-20
"""Scales and levels are float32: their rounding must not lift a sum over its bound."""


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

    The step is largest/127 with −127…127, and 2·largest/255 with −128…127, as torch's observers have it; more where
    two weights that meet would break ``scheme.pair_max``.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others) if scheme.per_channel else np.abs(weight).max(keepdims=True).reshape(1)
    scales = largest.astype(np.float64) / ((scheme.weight_max - scheme.weight_min) / 2)
    if scheme.pair_max is not None:
        sums = _pair_sums(weight, axis) * (_MARGIN / scheme.pair_max)
        scales = np.maximum(scales, sums if scheme.per_channel else sums.max(keepdims=True))
    found: npt.NDArray[np.float32] = np.maximum(scales, np.finfo(np.float32).eps).astype(np.float32)
    return found


def _pair_sums(weight: F32, axis: int) -> F64:
    """f64 [outputs]: the largest |v + w| of neighbouring inputs.

    Rounding cannot lift it over an integer bound: it adds one where both weights round up, and then the sum of their
    whole parts is at least two below the bound. Convolutions of more than one pixel have no such pairs.
    """
    rows = np.moveaxis(weight, axis, 0)
    if any(size != 1 for size in weight.shape[2:]):
        return np.zeros(len(rows))
    rows = rows.reshape(len(rows), -1)
    even = rows.shape[1] // 2 * 2
    found: F64 = np.abs(rows[:, 0:even:2] + rows[:, 1:even:2]).max(1, initial=0.0).astype(np.float64)
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
