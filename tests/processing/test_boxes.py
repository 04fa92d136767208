"""Where a view lies: of a picture whose colours tell the place, every view shows the colours of its box."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.processing.image import cutting, pixel_values

GRID = replace(ImageProcessorSpec.tiles(256, 64, resample=3, do_normalize=False), mode="grid")
SPECS = {
    "padded": ImageProcessorSpec.square(64, pads=True, do_normalize=False),
    "middle": ImageProcessorSpec.square(64, pads=False, do_normalize=False),
    "padded, middle": replace(ImageProcessorSpec.square(64, pads=True, do_normalize=False), do_center_crop=True),
    "tiles": replace(ImageProcessorSpec.tiles(256, 64), do_normalize=False),
    "canvas": replace(ImageProcessorSpec.canvas(64), do_normalize=False),
    "squeezed": replace(ImageProcessorSpec.square(64, pads=True, do_normalize=False), do_pad=False),
    "grid": GRID,
    "grid without a whole": replace(GRID, add_whole=False, do_enlarge=False),
    "one tile": replace(ImageProcessorSpec.tiles(64, 64), do_normalize=False),
}


def places(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], -1).round().astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (120, 400), (256, 256)])
@pytest.mark.parametrize("name", SPECS)
def test_a_view_shows_its_box(name: str, size: tuple[int, int]) -> None:
    spec, image = SPECS[name], places(*size)
    boxes, values = cutting(spec).boxes(size, spec), pixel_values(image, spec)
    assert len(boxes) == len(values)
    for (left, top, right, bottom), view in zip(boxes, values, strict=True):
        side = view.shape[-1]
        x = left + (np.arange(side) + 0.5) * (right - left) / side
        y = top + (np.arange(side) + 0.5) * (bottom - top) / side
        columns, rows = (
            (place > 0.1 * length) & (place < 0.9 * length) for place, length in zip((x, y), size, strict=True)
        )
        red, green = (view[channel][np.ix_(rows, columns)] for channel in (0, 1))
        assert np.abs(red.mean(0) - x[columns] / size[0]).max() < 0.02
        assert np.abs(green.mean(1) - y[rows] / size[1]).max() < 0.02
