"""How much noise int8 adds to a layer's output, predicted from statistics alone: no forward pass.

Errors of inputs and of weights are taken as independent of the values and of each other, so that powers add. A layer
reads x [columns] and gives x·W; noise is E|x·W − x̂·Ŵ|², summed over the outputs.
"""

from __future__ import annotations

import math

import numpy as np

from vlmexport.calibrate.statistics import Histogram, LayerStatistics
from vlmexport.quantize.observers import squared_error
from vlmexport.quantize.ranges import F32, F64, Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme

_TYPICAL = 0.999
"""Part of the values, smallest first, that is called typical. A few tokens and channels hold nearly all of the energy
of a Llama's inputs; a signal that counts them hides that the rest drowned."""


def input_error(histogram: Histogram, span: Range, scheme: Scheme) -> float:
    """Mean squared error of one value of the input."""
    total = int(histogram.counts.sum())
    low, high = np.array([min(span.low, 0.0)]), np.array([max(span.high, 0.0)])
    error = squared_error(histogram.centres, histogram.counts.astype(np.float64), low, high, scheme)
    return float(error[0]) / max(total, 1)


def uniform_error(span: Range, scheme: Scheme) -> float:
    """Mean squared error of one value that is spread over steps and never clipped."""
    step, _ = span.parameters(scheme)
    return step * step / 12


def output_noise(weight: F32, power: F64, error: float, scheme: Scheme) -> float:
    """Predicted noise of one product.

    Args:
        weight: f32 [columns, outputs].
        power: f64 [columns] mean square of the input.
        error: mean squared error of one value of the input.
    """
    scales = weight_scales(weight, 1, scheme)
    rounded = quantize_weight(weight, scales, 1, scheme).astype(np.float32) * scales
    of_weights = np.square(rounded - weight, dtype=np.float64).sum(1)
    return float(error * np.square(weight, dtype=np.float64).sum() + (power * of_weights).sum())


def typical_signal(weight: F32, layer: LayerStatistics) -> float:
    """Power of one product's output for typical inputs: f32 [columns, outputs], statistics of what it reads."""
    power = layer.importance()
    whole = float((power * np.square(weight, dtype=np.float64).sum(1)).sum())
    return whole * _typical_part(layer.histogram)


def decibels(signal: float, noise: float) -> float:
    """Signal to noise ratio; infinite where there is no noise."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _typical_part(histogram: Histogram) -> float:
    """Part of the energy that the typical values hold."""
    order = np.argsort(np.abs(histogram.centres), kind="stable")
    counts = histogram.counts[order].astype(np.float64)
    energy = counts * np.square(histogram.centres[order])
    total, seen = float(energy.sum()), np.cumsum(counts)
    typical = float(energy[seen <= _TYPICAL * max(seen[-1], 1.0)].sum())
    return typical / total if total else 0.0
