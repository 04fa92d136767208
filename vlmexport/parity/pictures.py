"""The pictures of a report: the image that suffered most and the median one, with the cosine of every patch."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.measured import Measured, Rows
from vlmexport.parity.result import Picture, View
from vlmexport.processing.image import Box, cutting
from vlmexport.processing.prompt import Grid

SIDE = 224
"""Pixels of the longest side: some 10 kB an image, whatever the model's own size."""

SHORTEST = 32
"""Of the other side at least: of a strip of one pixel nothing would be seen."""

_ROUNDING = 1e-6
Rank = Literal["worst", "median"]


def pictures(measured: Measured, samples: Sequence[Sample], spec: ImageProcessorSpec) -> list[Picture]:
    """The worst image and the median one, by the mean cosine of what the bundle made of them last."""
    known = {image: rows.mean for image, rows in measured.images.items() if rows.cosines}
    if not known:
        return []
    order = sorted(known, key=lambda image: known[image])
    loads = {one.image_id: one.image for sample in samples for one in sample.alone()}
    ranks: list[tuple[Rank, str]] = [("worst", order[0]), ("median", order[len(order) // 2])]
    return [_picture(name, rank, loads[name](), measured.images[name], spec) for rank, name in ranks]


def _picture(name: str, rank: Rank, image: Image.Image, rows: Rows, spec: ImageProcessorSpec) -> Picture:
    """All that its views show: the picture, with its padding or without what is cut off."""
    boxes = cutting(spec).boxes(image.size, spec)
    left, top, right, bottom = _around(boxes)
    whole = Image.new("RGB", (right - left, bottom - top), spec.background)
    whole.paste(image, (-left, -top))
    scale = SIDE / max(whole.size)
    width, height = (max(round(side * scale), SHORTEST) for side in whole.size)
    is_stretched = min(whole.size) * scale < SHORTEST - 1
    whole = whole.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    across, down = whole.width / (right - left), whole.height / (bottom - top)
    views = []
    for number, box in enumerate(boxes):
        cosines = {stage: [float(f"{value:.7g}") for value in found[number]] for stage, found in rows.cosines.items()}
        grids = {stage: lie(len(found), rows.grids[number]) for stage, found in cosines.items()}
        place = ((box[0] - left) * across, (box[1] - top) * down, (box[2] - left) * across, (box[3] - top) * down)
        views.append(View(box=place, cosines=cosines, grids={stage: grid for stage, grid in grids.items() if grid}))
    return Picture(image=name, rank=rank, views=views, jpeg=_jpeg(whole), size=whole.size, stretched=is_stretched)


def lie(count: int, tokens: Grid) -> Grid | None:
    """Rows and columns of so many patches, or tokens, of a view; None where they have no place in it.

    Args:
        tokens: rows and columns of its visual tokens. Patches lie as they do, only closer; where these are resampled
            (a Q-Former), patches are a square.
    """
    rows, columns = tokens
    times = math.isqrt(count // (rows * columns))
    if rows > 1 and rows * columns * times**2 == count:
        return rows * times, columns * times
    side = math.isqrt(count)
    return (side, side) if side**2 == count and (count == 1 or tokens != (1, count)) else None


def _around(boxes: Sequence[Box]) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels that holds them all."""
    left, top, right, bottom = zip(*boxes, strict=True)
    x, y = (math.floor(min(values) + _ROUNDING) for values in (left, top))
    return x, y, *(math.ceil(max(values) - _ROUNDING) for values in (right, bottom))


def _jpeg(image: Image.Image) -> str:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode("ascii")
