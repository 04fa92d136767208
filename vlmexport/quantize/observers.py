"""Observers: from the histogram of what a layer reads to the range that its integers span.

All of them take one histogram, which streams and adds up, so memory does not depend on the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vlmexport.calibrate.statistics import F64, LayerStatistics
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import Scheme

Loss = Callable[[F64, F64, F64, F64, Scheme], F64]
"""values f64 [n], how often each occurs f64 [n], lows and highs f64 [ranges] around zero, scheme → f64 [ranges]."""

OUTSIDE = 1e-4
"""Part of the values that ``percentile`` clips, half of it on each side."""

_GRID = 64
_ROUNDS = 3
_STEP = 1e-5


def activation_range(layer: LayerStatistics, observer: str, scheme: Scheme) -> Range:
    """The range of a layer's input by an observer.

    Args:
        observer: ``minmax`` all values; ``percentile`` all but ``OUTSIDE``; ``histogram`` the search of torch's
            HistogramObserver; ``mse`` the least squared error; ``cosine`` the highest cosine.
    """
    full = Range(min(layer.minimum, 0.0), max(layer.maximum, 0.0))
    used = np.flatnonzero(layer.histogram.counts)
    values, counts = layer.histogram.centres[used], layer.histogram.counts[used].astype(np.float64)
    if observer == "minmax" or not used.size or full.low == full.high:
        return full
    if observer == "percentile":
        return _within(full, *_quantiles(values, np.cumsum(counts) / counts.sum(), OUTSIDE / 2, OUTSIDE / 2))
    if observer == "histogram":
        return _cut_tails(values, counts, full, scheme)
    return _search(values, counts, full, scheme, squared_error if observer == "mse" else cosine_loss)


def squared_error(values: F64, counts: F64, low: F64, high: F64, scheme: Scheme) -> F64:
    """Squared error of ranges: a ``Loss``."""
    error: F64 = (np.square(_rounded(values, low, high, scheme) - values) * counts).sum(1)
    return error


def cosine_loss(values: F64, counts: F64, low: F64, high: F64, scheme: Scheme) -> F64:
    """One less the cosine between the values and what the integers make of them: a ``Loss``.

    Source: the search for scales of PTQ4ViT, Yuan et al. 2021, arXiv:2111.12293 (on outputs there).
    """
    rounded = _rounded(values, low, high, scheme)
    both, own = (rounded * values * counts).sum(1), (np.square(rounded) * counts).sum(1)
    norm = np.sqrt(own * (np.square(values) * counts).sum())
    loss: F64 = 1 - np.divide(both, norm, out=np.zeros_like(both), where=norm > 0)
    return loss


def _rounded(values: F64, low: F64, high: F64, scheme: Scheme) -> F64:
    """f64 [ranges, n]: the real that each value's level stands for."""
    scale = np.maximum((high - low) / scheme.steps, scheme.eps)[:, None]
    zero = scheme.activation_min - np.round(low[:, None] / scale)
    levels = np.clip(np.round(values / scale) + zero, scheme.activation_min, scheme.activation_max)
    found: F64 = (levels - zero) * scale
    return found


def _search(values: F64, counts: F64, full: Range, scheme: Scheme, loss: Loss) -> Range:
    """The range of least loss: both ends shrink together first, then each in turn by coordinate descent."""

    def best(lows: F64, highs: F64) -> tuple[float, float]:
        index = int(loss(values, counts, lows, highs, scheme).argmin())
        return float(lows[index]), float(highs[index])

    shrink = np.linspace(1.0, 1 / _GRID, _GRID)  # the widest first: of equals the first one wins
    low, high = best(full.low * shrink, full.high * shrink)
    span = 2.0
    for _ in range(_ROUNDS):
        factors = np.linspace(1 / span, span, _GRID + 1)
        lows = np.clip(np.append(low, low * factors), full.low, 0.0)
        low, high = best(lows, np.full_like(lows, high))
        highs = np.clip(np.append(high, high * factors), 0.0, full.high)
        low, high = best(np.full_like(highs, low), highs)
        span = 1 + (span - 1) / 3
    return Range(low, high)


def _cut_tails(values: F64, counts: F64, full: Range, scheme: Scheme) -> Range:
    """Cut ever more values off that tail which loses more of the range by it, while the squared error falls.

    Source: what torch.ao.quantization's HistogramObserver does; its steps are quantiles too.
    """
    share = np.cumsum(counts) / counts.sum()
    found, least = full, float(squared_error(values, counts, *_ends(full), scheme)[0])
    below = above = 0.0
    while below + above < 1 - _STEP:
        low, high = _quantiles(values, share, below + _STEP, above + _STEP)
        if low - found.low > found.high - high:
            below, tried = below + _STEP, _within(full, low, found.high)
        else:
            above, tried = above + _STEP, _within(full, found.low, high)
        if tried == found:
            continue
        error = float(squared_error(values, counts, *_ends(tried), scheme)[0])
        if error > least:
            break
        found, least = tried, error
    return found


def _quantiles(values: F64, share: F64, below: float, above: float) -> tuple[float, float]:
    """The ends of what is left without a part ``below`` and one ``above``; ``share`` of the values are up to each."""
    low = int(np.searchsorted(share, below, side="right"))
    high = int(np.searchsorted(share, 1 - above, side="left"))
    return float(values[min(low, len(values) - 1)]), float(values[min(high, len(values) - 1)])


def _within(full: Range, low: float, high: float) -> Range:
    return Range(max(full.low, min(low, 0.0)), min(full.high, max(high, 0.0)))


def _ends(span: Range) -> tuple[F64, F64]:
    return np.array([span.low]), np.array([span.high])
