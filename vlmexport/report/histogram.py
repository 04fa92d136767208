"""How KL divergences are distributed: two bars a decade."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LOWEST, _HIGHEST = -7, 1
_PER_DECADE = 2


@dataclass(frozen=True)
class Bar:
    """``count`` values from ``low`` to ``high``; ``share`` of the longest bar. The first and the last bar are open."""

    low: float
    high: float
    count: int
    share: float


def histogram(values: Sequence[float]) -> list[Bar]:
    """Bars from 1e-7 to 10 nats; none where there are no values."""
    last = (_HIGHEST - _LOWEST) * _PER_DECADE - 1
    counts = Counter(min(max(_bin(value), 0), last) for value in values)
    longest = max(counts.values(), default=0)
    if not longest:
        return []
    edges = [10 ** (_LOWEST + i / _PER_DECADE) for i in range(last + 2)]
    return [Bar(edges[i], edges[i + 1], counts[i], counts[i] / longest) for i in range(last + 1)]


def _bin(value: float) -> int:
    return math.floor((math.log10(value) - _LOWEST) * _PER_DECADE) if value > 0 else 0
