from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlmexport.measures.arrays import ArrayMeasure, ShapeDiffersError, cosine
from vlmexport.measures.logits import LogitsMeasure, kl_divergence

whole = st.integers(-100, 100)
matrices = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(2, 8)), elements=whole)


@given(matrices)
def test_equal_arrays_are_perfect(a: np.ndarray) -> None:
    measure = ArrayMeasure()
    measure.add(a, a.copy())
    metrics = measure.metrics()
    assert metrics["cosine"] == pytest.approx(1.0)
    assert metrics["nmse"] == 0
    assert metrics["max_abs"] == 0


@given(matrices, st.floats(0.1, 10))
def test_cosine_ignores_scale(a: np.ndarray, scale: float) -> None:
    assert cosine(a, (a * np.float32(scale))) == pytest.approx(np.ones(len(a)), abs=1e-5)


def test_known_values() -> None:
    measure = ArrayMeasure()
    measure.add(np.array([[3, 4], [0, 1]], np.float32), np.array([[3, 4], [1, 0]], np.float32))
    metrics = measure.metrics()
    assert metrics["cosine"] == pytest.approx(0.5)
    assert metrics["nmse"] == pytest.approx(2 / 26)
    assert metrics["sqnr_db"] == pytest.approx(10 * np.log10(13))
    assert metrics["max_abs"] == 1


def test_nan_is_not_finite() -> None:
    measure = ArrayMeasure()
    measure.add(np.ones((1, 2), np.float32), np.array([[1, np.nan]], np.float32))
    assert measure.metrics()["finite"] == 0


def test_a_different_shape_is_an_error() -> None:
    with pytest.raises(ShapeDiffersError, match="shape"):
        ArrayMeasure().add(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))


@given(matrices, matrices)
def test_kl_divergence_is_not_negative(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape == b.shape:
        # Terms below log p = -16 are left out, each is at most e^-16 · its log ratio.
        assert (kl_divergence(a, b) >= -1e-4).all()
    assert kl_divergence(a, a) == pytest.approx(np.zeros(len(a)), abs=1e-12)


def test_kl_divergence_by_hand() -> None:
    p = np.log(np.array([[0.5, 0.5]], np.float32))
    q = np.log(np.array([[0.9, 0.1]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(p, q)[0] == pytest.approx(expected, rel=1e-5)


def test_logits_are_judged_where_the_answer_is_decoded() -> None:
    reference = np.zeros((1, 2, 3), np.float32)
    reference[0, :, 1] = 5
    other = reference.copy()
    other[0, 0, 2] = 4
    measure = LogitsMeasure()
    divergences = measure.add(reference, other, [1, 1])
    metrics = measure.metrics()
    assert divergences.tolist() == [metrics["kld_max"], 0]
    assert metrics["top1"] == 1
    assert metrics["max_abs"] == 4


def test_a_large_vocabulary_is_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference, other = (random.standard_normal((1, 7, 50)).astype(np.float32) for _ in range(2))
    answer = reference[0].argmax(-1).tolist()
    whole, parts = LogitsMeasure(), LogitsMeasure()
    divergences = whole.add(reference, other, answer)
    monkeypatch.setattr(sys.modules[LogitsMeasure.__module__], "_AT_ONCE", 100)
    np.testing.assert_array_equal(parts.add(reference, other, answer), divergences)
    assert [len(rows) for rows in parts.kld] == [2, 2, 2, 1]
    assert parts.metrics() == pytest.approx(whole.metrics())
