"""Scales and zero points: of activations from their histograms, of weights from the weights. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmexport.calibrate.statistics import Histogram, LayerStatistics
from vlmexport.quantize.schemes import Scheme

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
_GRID = 64
_ROUNDS = 3


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


def activation_range(layer: LayerStatistics, observer: str, scheme: Scheme) -> Range:
    """The range of a layer's input: ``minmax``, or ``mse`` (least squared error)."""
    full = Range(layer.minimum, layer.maximum)
    return full if observer == "minmax" else least_squares(layer.histogram, full, scheme)


def least_squares(histogram: Histogram, full: Range, scheme: Scheme) -> Range:
    """The range with the least squared error over a histogram.

    Both ends shrink together first, then each in turn by coordinate descent. The objective is the exact rounding and
    clipping error at the centres of the bins; torch's HistogramObserver minimises an approximation of it.
    """
    used = np.flatnonzero(histogram.counts)
    values, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    low, high = min(full.low, 0.0), max(full.high, 0.0)
    if not values.size or low == high:
        return full
    shrink = np.linspace(1 / _GRID, 1.0, _GRID)
    low, high = _best(values, counts, low * shrink, high * shrink, scheme)
    span = 2.0
    for _ in range(_ROUNDS):
        factors = np.linspace(1 / span, span, _GRID + 1)
        lows = np.clip(np.append(low * factors, low), min(full.low, 0.0), 0.0)
        low, high = _best(values, counts, lows, np.full_like(lows, high), scheme)
        highs = np.clip(np.append(high * factors, high), 0.0, max(full.high, 0.0))
        low, high = _best(values, counts, np.full_like(highs, low), highs, scheme)
        span = 1 + (span - 1) / 3
    return Range(low, high)


def squared_error(values: F64, counts: F64, low: F64, high: F64, scheme: Scheme) -> F64:
    """Squared error of ranges.

    Args:
        values: f64 [n], counts: f64 [n] how often each one occurs.
        low, high: f64 [ranges] candidates, low ≤ 0 ≤ high.

    Returns:
        f64 [ranges].
    """
    scale = np.maximum((high - low) / scheme.steps, scheme.eps)[:, None]
    zero = scheme.activation_min - np.round(low[:, None] / scale)
    levels = np.clip(np.round(values / scale) + zero, scheme.activation_min, scheme.activation_max)
    error: F64 = (np.square((levels - zero) * scale - values) * counts).sum(1)
    return error


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


def _best(values: F64, counts: F64, low: F64, high: F64, scheme: Scheme) -> tuple[float, float]:
    index = int(squared_error(values, counts, low, high, scheme).argmin())
    return float(low[index]), float(high[index])
