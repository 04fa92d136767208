from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlmexport.calibrate import LayerStatistics, Statistics
from vlmexport.calibrate.statistics import ROWS

values = arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.just(4)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def of(*parts: np.ndarray) -> LayerStatistics:
    layer = LayerStatistics(4)
    for part in parts:
        layer.add(part)
    return layer


@settings(max_examples=60, deadline=None)
@given(values, values)
def test_addition_equals_one_pass(a: np.ndarray, b: np.ndarray) -> None:
    together, summed, swapped = of(a, b), of(a) + of(b), of(b, a)
    for other in (summed, swapped):
        assert (other.minimum, other.maximum) == (together.minimum, together.maximum)
        assert other.histogram.exponent == together.histogram.exponent
        assert (other.histogram.counts == together.histogram.counts).all()
        assert other.sum_sq_image == pytest.approx(together.sum_sq_image)
        assert other.mean == pytest.approx(np.concatenate([a, b]).mean(0, np.float64), rel=1e-6, abs=1e-6)
        assert (other.keys == together.keys).all()
        assert (other.rows == together.rows).all()
        assert other.count_image == len(a) + len(b)


def test_kept_rows_are_a_fair_draw_of_different_rows() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((4000, 4)).astype(np.float32)
    rows[:, 0] = np.arange(4000)
    rows[:3000, 1:] = 0  # as after a ReLU
    layer = of(rows, rows)
    assert layer.rows.shape == (ROWS, 4)
    places = layer.rows[:, 0].astype(int)
    assert len(set(places)) == ROWS
    assert (rows[places] == layer.rows).all()
    draws = [of(rows[random.permutation(4000)[:200]]).rows[:, 0] for _ in range(20)]
    assert np.mean(draws) == pytest.approx(2000, abs=300)


@settings(deadline=None)  # the first call compiles
@given(values)
def test_a_histogram_holds_every_value_in_its_bin(a: np.ndarray) -> None:
    histogram = of(a).histogram
    assert histogram.counts.sum() == a.size
    assert histogram.edges[0] <= a.min()
    assert a.max() <= histogram.edges[-1]
    expected = np.histogram(a.astype(np.float64), histogram.edges)[0]
    assert (histogram.counts == expected).all()


def test_image_and_text_are_kept_apart() -> None:
    layer = LayerStatistics(2)
    layer.add(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), np.array([True, False]))
    assert list(layer.sum_sq_image) == [1, 4]
    assert list(layer.sum_sq_text) == [9, 16]
    assert layer.importance(image_weight=0).tolist() == [9, 16]
    assert layer.importance(image_weight=1).tolist() == [5, 10]


def test_save_and_load(tmp_path: Path) -> None:
    layer = of(np.arange(8, dtype=np.float32).reshape(2, 4))
    Statistics({"language.lm_head": layer}, ("a", "b")).save(tmp_path / "s.safetensors")
    found = Statistics.load(tmp_path / "s.safetensors")
    assert found.samples == ("a", "b")
    loaded = found.layers["language.lm_head"]
    assert (loaded.histogram.counts == layer.histogram.counts).all()
    assert (loaded.minimum, loaded.maximum, loaded.count_image) == (0.0, 7.0, 2)
    assert loaded.abs_max.tolist() == [4, 5, 6, 7]
    assert loaded.mean.tolist() == [2, 3, 4, 5]
    assert loaded.rows.tolist() == layer.rows.tolist()
    assert (loaded + loaded).rows.tolist() == layer.rows.tolist()
