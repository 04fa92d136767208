"""The worst and the median image are found, and neither is changed."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_spec
from tests.onnx_bundles import picture
from vlmexport.calibrate import Sample
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.pictures import pictures

SPEC = tiny_spec("ldpnetv2").image_processor


def test_worst_and_median() -> None:
    images = {
        f"{i}": {"features": np.full(4, 0.1), "tokens": np.array([loss, 1.0])} for i, loss in enumerate((0.9, 0.2, 0.8))
    }
    shown = picture(0, (336, 336))
    samples = [Sample(name, name, "?", lambda: shown) for name in images]
    worst, median = pictures(Measured(images=images), samples, SPEC)
    assert (worst.image, worst.rank, worst.cosines) == ("1", "worst", {"features": [0.1] * 4, "tokens": [0.2, 1.0]})
    assert (median.image, median.rank) == ("2", "median")
    with Image.open(io.BytesIO(base64.b64decode(worst.jpeg))) as small:
        assert small.size == (224, 224)
    assert shown.size == (336, 336)


@pytest.mark.parametrize("images", [{}, {"0": {}}])
def test_none_where_no_stage_ran(images: dict[str, dict[str, np.ndarray]]) -> None:
    assert pictures(Measured(images=images), [], SPEC) == []
