"""The pictures of a report: the image that suffered most and the median one, with the cosine of every patch."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.result import Picture
from vlmexport.processing.image import cutting

SIDE = 224
"""Longest side in pixels: some 10 kB an image, whatever the model's own size."""


def pictures(measured: Measured, samples: Sequence[Sample], spec: ImageProcessorSpec) -> list[Picture]:
    """The worst image and the median one, by the mean cosine of what the bundle made of them last."""
    known = {image: cosines for image, cosines in measured.images.items() if cosines}
    if not known:
        return []
    order = sorted(known, key=lambda image: float(list(known[image].values())[-1].mean()))
    loads = {one.image_id: one.image for sample in samples for one in sample.alone()}

    def picture(image: str, rank: Literal["worst", "median"]) -> Picture:
        rows = {stage: [float(f"{value:.7g}") for value in cosines] for stage, cosines in known[image].items()}
        return Picture(image=image, rank=rank, cosines=rows, jpeg=_jpeg(cutting(spec).shown(loads[image](), spec)))

    return [picture(order[0], "worst"), picture(order[len(order) // 2], "median")]


def _jpeg(image: Image.Image) -> str:
    small, content = image.copy(), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode("ascii")
