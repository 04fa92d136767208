"""How certain a difference is: 95 % intervals of shares and of paired means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Z = 1.96
_RESAMPLES = 2000


def share_interval(successes: float, count: int) -> tuple[float, float]:
    """Of a share, by Wilson's score: right for shares near 0 and 1, too. A success may be one in part."""
    share, square = successes / count, _Z**2 / count
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share(name: str, successes: float, count: int) -> dict[str, float]:
    """A share of ``count``, and its 95 % interval: name, name_low, name_high."""
    low, high = share_interval(successes, count)
    return {name: successes / count, f"{name}_low": low, f"{name}_high": high}


def paired_drop(reference: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ``reference - other`` over the same samples, with its interval.

    Right or wrong (0 and 1): Bonett and Price's adjusted Wald interval (2012), which does not claim certainty where
    no answer differs. Other scores: the percentiles of a bootstrap over samples.
    """
    difference = np.asarray(reference, float) - np.asarray(other, float)
    mean, count = float(difference.mean()), len(difference)
    if not set(difference.tolist()) <= {-1.0, 0.0, 1.0}:
        low, high = np.percentile(_resampled_means(difference), (2.5, 97.5))
        return mean, float(low), float(high)
    lost, won = (((difference == value).sum() + 1) / (count + 2) for value in (1, -1))
    half = _Z * math.sqrt((lost + won - (lost - won) ** 2) / (count + 2))
    return mean, float(lost - won - half), float(lost - won + half)


def _resampled_means(values: npt.NDArray[np.float64]) -> list[float]:
    random, count = np.random.default_rng(0), len(values)
    return [float(values[random.integers(count, size=count)].mean()) for _ in range(_RESAMPLES)]
