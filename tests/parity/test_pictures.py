"""The worst and the median image are found, and neither is changed."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_spec
from tests.onnx_bundles import picture
from vlmexport.calibrate import Sample
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.measured import Measured, Rows
from vlmexport.parity.pictures import lie, pictures
from vlmexport.processing.images import read_image
from vlmexport.processing.prompt import Grid
from vlmexport.processing.tiles import tiles
from vlmexport.report.heat import borders

SPEC = tiny_spec("ldpnetv2").image_processor


def test_worst_and_median() -> None:
    images = {
        f"{i}": Rows({"features": [np.full(16, 0.1)], "tokens": [np.array([loss, 1.0, 1.0, 1.0])]}, ((2, 2),))
        for i, loss in enumerate((0.9, 0.2, 0.8))
    }
    shown = picture(0, (336, 336))
    samples = [Sample(name, name, "?", lambda: shown) for name in images]
    worst, median = pictures(Measured(images=images), samples, SPEC)
    (view,) = worst.views
    assert (worst.image, worst.rank) == ("1", "worst")
    assert view.cosines == {"features": [0.1] * 16, "tokens": [0.2, 1.0, 1.0, 1.0]}
    assert (view.box, view.grids) == ((0, 0, 224, 224), {"features": (4, 4), "tokens": (2, 2)})
    assert (median.image, median.rank) == ("2", "median")
    with Image.open(io.BytesIO(base64.b64decode(worst.jpeg))) as small:
        assert small.size == worst.size == (224, 224)
    assert shown.size == (336, 336)


def test_views_lie_where_they_show_the_picture() -> None:
    """The tiles side by side in a picture of another shape, whose longest side is drawn as 224 pixels; the whole over
    all of it."""
    spec, count = ImageProcessorSpec.tiles(128, 64), 3
    rows = Rows({"tokens": [np.full(8, 0.5) for _ in range(count)]}, ((4, 2),) * count)
    sample = Sample("0", "0", "?", lambda: picture(0, (600, 300)))
    found, _ = pictures(Measured(images={"0": rows}), [sample], spec)
    assert found.size == (224, 112)
    assert [view.box for view in found.views] == [(0, 0, 112, 112), (112, 0, 224, 112), (0, 0, 224, 112)]
    assert all(view.grids == {"tokens": (4, 2)} for view in found.views)


ORIENTATION, EDGE = 0x0112, (0.0, 224 / 3, 448 / 3, 224.0)
STRIPS: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[float, ...], tuple[float, ...]]] = {
    "wide": ((4000, 1), (224, 32), EDGE, (0.0, 32.0)),
    "high": ((1, 4000), (32, 224), (0.0, 32.0), EDGE),
    "one pixel": ((1, 1), (224, 224), EDGE, EDGE),
    "high enough": ((300, 900), (75, 224), (0.0, 75.0), EDGE),
    "high and turned": ((900, 300), (75, 224), (0.0, 75.0), EDGE),
}


@pytest.mark.parametrize("name", STRIPS)
def test_borders_of_tiles_on_pictures_of_every_shape(name: str, tmp_path: Path) -> None:
    """Where the views meet, in pixels of what is drawn: a strip is drawn broader, a tiny picture larger, a photograph
    upright."""
    size, drawn, across, down = STRIPS[name]
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if "turned" in name else 1
    picture(0, size).save(tmp_path / "picture.png", exif=exif)
    shown = read_image(tmp_path / "picture.png")
    spec = ImageProcessorSpec.tiles(216, 72)
    rows, columns = tiles(shown.size, spec)
    count = rows * columns + 1
    measured = Rows({"tokens": [np.full(9, 0.5) for _ in range(count)]}, ((3, 3),) * count)
    found, _ = pictures(Measured(images={"0": measured}), [Sample("0", "0", "?", lambda: shown)], spec)
    assert (found.size, found.stretched) == (drawn, name in ("wide", "high"))
    lines = [tuple(sorted({round(edge, 3) for box in borders(found) for edge in box[at::2]})) for at in (0, 1)]
    assert lines[0] == pytest.approx(across, abs=0.01)
    assert lines[1] == pytest.approx(down, abs=0.01)


@pytest.mark.parametrize("pads", [True, False])
def test_padding_is_drawn_and_what_is_cut_off_is_not(pads: bool) -> None:
    spec, rows = ImageProcessorSpec.square(64, pads), Rows({"tokens": [np.full(4, 0.5)]}, ((2, 2),))
    sample = Sample("0", "0", "?", lambda: Image.new("RGB", (600, 300), "white"))
    found, _ = pictures(Measured(images={"0": rows}), [sample], spec)
    assert (found.size, found.views[0].box) == ((224, 224), (0, 0, 224, 224))
    with Image.open(io.BytesIO(base64.b64decode(found.jpeg))) as drawn:
        assert (drawn.getpixel((112, 5)) != (255, 255, 255)) == pads
        assert drawn.getpixel((112, 112)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("count", "tokens", "grid"),
    [
        (576, (12, 12), (24, 24)), (169, (13, 13), (13, 13)), (625, (13, 13), (25, 25)), (32, (4, 2), (8, 4)),
        (576, (1, 64), (24, 24)), (64, (1, 64), None), (577, (1, 577), None), (1, (1, 1), (1, 1)), (2, (12, 12), None),
    ],
)  # fmt: skip
def test_where_rows_lie(count: int, tokens: Grid, grid: Grid | None) -> None:
    """Patches of ldpnetv2, of an odd side, of a view that is no square; a Q-Former's; a class token among them."""
    assert lie(count, tokens) == grid


@pytest.mark.parametrize("images", [{}, {"0": Rows()}])
def test_none_where_no_stage_ran(images: dict[str, Rows]) -> None:
    assert pictures(Measured(images=images), [], SPEC) == []
