"""Cosines of patches as a map over the image: the stronger the colour, the larger the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmexport.parity.result import Picture

_FAINT, _STRONG = -4.0, -1.0
_OPAQUE = 0.9
LEGEND = [(f"{10**power:g}", _OPAQUE * (power - _FAINT) / (_STRONG - _FAINT)) for power in range(-3, 0)]
"""Loss 1 - cosine → opacity. One scale for all reports, so that two of them can be compared."""


@dataclass(frozen=True)
class Cell:
    """A patch, by column and row."""

    x: int
    y: int
    cosine: float
    opacity: float


@dataclass(frozen=True)
class Heat:
    """``side`` × ``side`` cells, those without a visible loss left out, and the worst of all."""

    stage: str
    side: int
    cells: list[Cell]
    worst: Cell
    mean: float


def heats(picture: Picture) -> list[Heat]:
    """A map for each stage whose rows are a square of patches; resampled tokens (Q-Former) are not."""
    found = []
    for stage, cosines in picture.cosines.items():
        side = math.isqrt(len(cosines))
        if not cosines or side * side != len(cosines):
            continue
        cells = [Cell(i % side, i // side, cosine, opacity(cosine)) for i, cosine in enumerate(cosines)]
        worst = min(cells, key=lambda cell: cell.cosine)
        visible = [cell for cell in cells if cell.opacity > 0]
        found.append(Heat(stage, side, visible, worst, sum(cosines) / len(cosines)))
    return found


def opacity(cosine: float) -> float:
    """0 up to a loss of 1e-4, then by the logarithm of the loss; 0.9 from 0.1 on, and where there is no cosine."""
    loss = 1 - cosine
    if math.isnan(loss):
        return _OPAQUE
    level = (math.log10(max(loss, 10**_FAINT)) - _FAINT) / (_STRONG - _FAINT)
    return round(_OPAQUE * min(level, 1.0), 3)
