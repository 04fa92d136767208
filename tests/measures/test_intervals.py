"""Intervals hold what they promise: known values, and the truth in 95 of 100 cases."""

from __future__ import annotations

import numpy as np
import pytest

from vlmexport.measures.intervals import paired_drop, share_interval


def test_wilson() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20."""
    for successes, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert share_interval(successes, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_no_answer_that_differs_is_not_certainty() -> None:
    drop, low, high = paired_drop([1.0] * 50, [1.0] * 50)
    assert drop == 0
    assert low == pytest.approx(-high)
    assert 0.02 < high < 0.1


def test_one_of_ten() -> None:
    drop, low, high = paired_drop([1.0] * 10, [1.0] * 9 + [0.0])
    assert drop == pytest.approx(0.1)
    lost, won = 2 / 12, 1 / 12
    half = 1.96 * ((lost + won - (lost - won) ** 2) / 12) ** 0.5
    assert (low, high) == (pytest.approx(lost - won - half), pytest.approx(lost - won + half))


@pytest.mark.parametrize(("binary", "trials"), [(True, 200), (False, 60)])
def test_the_true_drop_lies_inside(binary: bool, trials: int) -> None:
    random, inside = np.random.default_rng(3), 0
    for _ in range(trials):
        reference = (random.random(60) < 0.8).astype(float)
        other = np.where(random.random(60) < 0.9, reference, (random.random(60) < 0.3).astype(float))
        if not binary:
            reference, other = reference + random.normal(0, 0.1, 60), other + random.normal(0, 0.1, 60)
        _, low, high = paired_drop(reference.tolist(), other.tolist())
        inside += low <= 0.1 * (0.8 - 0.3) <= high
    assert inside >= 0.9 * trials
