"""How each group of layers takes its input: as it is or smoothed, as one int8 term or two, or in float.

Chosen by predicted noise, the cheapest that serves: one term where the typical signal stands far enough above its
noise, else two terms (twice the products, the same weights), else float.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vlmexport.calibrate.statistics import LayerStatistics
from vlmexport.quantize.noise import decibels, input_error, output_noise, typical_signal, uniform_error
from vlmexport.quantize.ranges import F32, F64, Range
from vlmexport.quantize.saturation import SAFE, lost
from vlmexport.quantize.schemes import Scheme

STRENGTHS = (0.25, 0.5, 0.65, 0.8, 0.95)
WORTH = 0.7
"""Part of the predicted noise that smoothing may leave (-1.5 dB); less of a gain is within the prediction's error."""
_PAIRS = (192, 176, 160, 152, 144, 136, SAFE)
_CAREFUL = 4.0
"""What saturation counts against rounding: few rows have been seen, and a pair that saturates may do so by more."""
_OUTPUTS = 256


@dataclass(frozen=True)
class Choice:
    """One way to take an input.

    ``scales`` f64 [columns] divide it, None leaves it alone; ``ratio`` is the predicted signal to noise ratio in dB.
    ``scheme`` bounds pairs of weights where products would saturate.
    """

    span: Range
    scales: F64 | None
    terms: int
    noise: float
    scheme: Scheme
    ratio: float = 0.0


@dataclass(frozen=True)
class Limits:
    """Predicted ratios in dB below which a group takes two terms, and below which it stays in float."""

    two_terms: float
    float32: float


def for_avx2(choice: Choice, weight: F32, layer: LayerStatistics) -> Choice:
    """A choice with the bound on pairs of weights with which a product without VNNI has the least noise: a tight one
    makes their steps larger, a loose one lets pairs saturate.

    Args:
        weight: f32 [columns, outputs] of one layer that reads the input; of large ones 256 outputs are looked at.
        layer: statistics of the input, with the rows that products are simulated on.
    """
    divisor = np.ones(layer.columns) if choice.scales is None else choice.scales
    columns = divisor.astype(np.float32)
    seen = weight[:, :: -(-weight.shape[1] // _OUTPUTS)] * columns[:, None]
    rows, power = (layer.rows / columns).astype(np.float32), layer.importance() / divisor**2

    def noise(pair_max: int | None) -> float:
        scheme = choice.scheme.with_pairs(pair_max)
        _, cut = lost(rows, seen, choice.span, scheme, choice.terms)
        return output_noise(seen, power, 0.0, scheme) + _CAREFUL * cut

    if lost(rows, seen, choice.span, choice.scheme, choice.terms)[0] == 0.0:
        return choice
    return replace(choice, scheme=choice.scheme.with_pairs(min(_PAIRS, key=noise)))


def choose(
    weights: list[F32], layer: LayerStatistics, span: Range, scheme: Scheme, smooth: bool, limits: Limits
) -> Choice | None:
    """The cheapest choice that serves; None for float.

    Args:
        weights: f32 [columns, outputs] of every layer that reads the input.
        layer: statistics of the input.
        span: its range by the observer.
        smooth: whether scales can be folded into what makes the input.
    """
    signal = sum(typical_signal(weight, layer) for weight in weights)
    for terms, limit in ((1, limits.two_terms), (2, limits.float32)):
        plain = _plain(weights, layer, span, scheme, terms)
        options = [plain]
        if smooth:
            smoothed = (_smoothed(weights, layer, scheme, strength, terms) for strength in STRENGTHS)
            options += [option for option in smoothed if option.noise < WORTH * plain.noise]
        best = min(options, key=lambda option: option.noise)
        ratio = decibels(signal, best.noise)
        if ratio >= limit:
            return replace(best, ratio=ratio)
    return None


def _plain(weights: list[F32], layer: LayerStatistics, span: Range, scheme: Scheme, terms: int) -> Choice:
    # Two terms clip nothing: the second one covers half a step of the first.
    span = span if terms == 1 else Range(layer.minimum, layer.maximum)
    error = input_error(layer.histogram, span, scheme) if terms == 1 else _second(span, scheme)
    noise = sum(output_noise(weight, layer.importance(), error, scheme) for weight in weights)
    return Choice(span, None, terms, noise, scheme)


def _smoothed(weights: list[F32], layer: LayerStatistics, scheme: Scheme, strength: float, terms: int) -> Choice:
    """Scales of SmoothQuant's formula, of geometric mean 1; the range holds the largest value of every column."""
    largest = np.maximum(layer.abs_max, 1e-9)
    of_weights = np.maximum(np.max([np.abs(weight).max(1) for weight in weights], axis=0), 1e-9).astype(np.float64)
    scales = largest**strength / of_weights ** (1 - strength)
    scales = np.maximum(scales / np.exp(np.log(scales).mean()), 1e-6)
    bound = float((largest / scales).max())
    span = Range(-bound, bound)
    error = uniform_error(span, scheme) if terms == 1 else _second(span, scheme)
    rows = scales.astype(np.float32)[:, None]
    noise = sum(output_noise(weight * rows, layer.importance() / scales**2, error, scheme) for weight in weights)
    return Choice(span, scales, terms, noise, scheme)


def _second(span: Range, scheme: Scheme) -> float:
    """Mean squared error of a second term over the rounding error of the first."""
    return uniform_error(span, scheme) / scheme.steps**2
