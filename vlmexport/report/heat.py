"""Cosines of patches as a map over the picture: the stronger the colour, the larger the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmexport.parity.result import Picture, View

_FAINT, _STRONG = -4.0, -1.0
_OPAQUE = 0.9
LEGEND = [(f"{10**power:g}", _OPAQUE * (power - _FAINT) / (_STRONG - _FAINT)) for power in range(-3, 0)]
"""Loss 1 - cosine → opacity. One scale for all reports, so that two of them can be compared."""

_APART = 0.1
"""Views side by side may share this part of the smaller one: tiles of whole pixels do, by a line."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Cell:
    """A patch, or a visual token: where it is in the picture, in pixels, and where it lies in its view."""

    x: float
    y: float
    width: float
    height: float
    place: str
    cosine: float
    opacity: float


@dataclass(frozen=True)
class Heat:
    """The cells of views that lie side by side, those without a visible loss left out, and the worst of all.

    ``views`` says which they are, and ``boxes`` where; empty where there is one only.
    """

    stage: str
    views: str
    boxes: list[Box]
    cells: list[Cell]
    worst: Cell
    mean: float


def heats(picture: Picture) -> list[Heat]:
    """A map for each stage and for each layer of views that do not cover each other (tiles; the picture as a whole).

    Rows that have no place in the picture are not drawn (resampled tokens, as a Q-Former's).
    """
    found = []
    for stage in dict.fromkeys(stage for view in picture.views for stage in view.grids):
        for layer in _layers(picture.views):
            cells = [cell for number in layer for cell in _cells(picture.views, number, stage)]
            if cells:
                visible = [cell for cell in cells if cell.opacity > 0]
                worst = min(cells, key=lambda cell: cell.cosine)
                mean = sum(cell.cosine for cell in cells) / len(cells)
                found.append(
                    Heat(stage, _names(layer, len(picture.views)), _boxes(picture, layer), visible, worst, mean)
                )
    return found


def borders(picture: Picture) -> list[Box]:
    """Of the views that lie side by side, the most that do; none where a view shows all."""
    return max((_boxes(picture, layer) for layer in _layers(picture.views)), key=len, default=[])


def opacity(cosine: float) -> float:
    """0 up to a loss of 1e-4, then by the logarithm of the loss; 0.9 from 0.1 on, and where there is no cosine."""
    loss = 1 - cosine
    if math.isnan(loss):
        return _OPAQUE
    level = (math.log10(max(loss, 10**_FAINT)) - _FAINT) / (_STRONG - _FAINT)
    return round(_OPAQUE * min(level, 1.0), 3)


def _cells(views: list[View], number: int, stage: str) -> list[Cell]:
    view = views[number]
    if stage not in view.grids:
        return []
    (left, top, right, bottom), (rows, columns) = view.box, view.grids[stage]
    width, height = (right - left) / columns, (bottom - top) / rows
    which = f"view {number + 1}, " if len(views) > 1 else ""
    return [
        Cell(
            round(left + i % columns * width, 2), round(top + i // columns * height, 2), round(width, 2),
            round(height, 2), f"{which}row {i // columns + 1}, column {i % columns + 1}", cosine, opacity(cosine),
        )
        for i, cosine in enumerate(view.cosines[stage])
    ]  # fmt: skip


def _layers(views: list[View]) -> list[list[int]]:
    """Numbers of the views, each in the first layer where it covers no other."""
    layers: list[list[int]] = []
    for number, view in enumerate(views):
        free = (layer for layer in layers if not any(_covers(view.box, views[other].box) for other in layer))
        layer = next(free, None)
        if layer is None:
            layers.append([number])
        else:
            layer.append(number)
    return layers


def _boxes(picture: Picture, layer: list[int]) -> list[Box]:
    """Where the views of a layer lie, to a hundredth of a pixel."""
    if len(layer) == 1:
        return []
    return [
        (round(a, 2), round(b, 2), round(c, 2), round(d, 2)) for a, b, c, d in (picture.views[i].box for i in layer)
    ]


def _covers(one: Box, other: Box) -> bool:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(across, 0.0) * max(down, 0.0) > _APART * smaller


def _names(layer: list[int], views: int) -> str:
    if views == 1:
        return ""
    if len(layer) == 1:
        return f"view {layer[0] + 1}"
    in_a_row = layer == [*range(layer[0], layer[-1] + 1)]
    return f"views {f'{layer[0] + 1}–{layer[-1] + 1}' if in_a_row else ', '.join(str(one + 1) for one in layer)}"
