"""Bits under a budget: never above it, and as good as trying everything but for what the last step leaves over."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlmexport.quantize.allocation import Choice, allocate, candidates, loss

choices = st.lists(
    st.builds(Choice, st.sampled_from("abcdef"), st.integers(1, 60), st.floats(0, 100)), min_size=1, max_size=5
)
tables = st.dictionaries(st.sampled_from(["q", "k", "v", "o"]), choices, min_size=1)


def totals(picked: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.bytes for c in picked.values()), sum(c.loss for c in picked.values())


@given(tables, st.integers(0, 250))
def test_fits_and_no_single_change_within_the_budget_is_better_on_the_hull(
    table: dict[str, list[Choice]], budget: int
) -> None:
    smallest = sum(min(c.bytes for c in row) for row in table.values())
    found = allocate(table, budget)
    assert (found is None) == (smallest > budget)
    if found is None:
        return
    size, error = totals(found)
    assert size <= budget
    assert all(found[name] in row for name, row in table.items())
    # At the size that was reached nothing is better but what a knapsack's last gap may hide: one step of one tensor.
    best = min(
        totals(dict(zip(table, picks, strict=True)))[1]
        for picks in product(*table.values())
        if sum(c.bytes for c in picks) <= budget
    )
    largest = max(max(c.loss for c in row) - min(c.loss for c in row) for row in table.values())
    assert error <= best + largest + 1e-9


@given(tables, st.integers(0, 120))
def test_where_everything_fits_everything_is_best(table: dict[str, list[Choice]], spare: int) -> None:
    found = allocate(table, sum(max(c.bytes for c in row) for row in table.values()) + spare)
    assert found is not None
    assert np.isclose(totals(found)[1], sum(min(c.loss for c in row) for row in table.values()))


def test_bytes_go_where_they_gain_most() -> None:
    table = {
        "dull": [Choice("q2_k", 10, 1.0), Choice("q8_0", 40, 0.9)],
        "keen": [Choice("q2_k", 10, 9.0), Choice("q4_k", 20, 3.0), Choice("q8_0", 40, 0.1)],
    }
    picked = allocate(table, 50)
    assert picked is not None
    assert {name: c.type for name, c in picked.items()} == {"dull": "q2_k", "keen": "q8_0"}


def test_loss_weighs_rows_and_columns() -> None:
    difference = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    assert loss(difference, np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 2.0
    assert loss(difference, np.array([2.0, 1.0]), np.array([1.0, 0.5])) == 0.5 * (2 * (1 + 2) + (9 + 8))


def test_candidates_fit_the_rows() -> None:
    assert "q4_k" in candidates(512)
    assert "q4_k" not in candidates(576)
    assert "q5_0" in candidates(576)
    assert candidates(40) == ("f16",)
