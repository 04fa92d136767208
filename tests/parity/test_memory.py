"""What a comparison keeps does not grow with the images that it runs over."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

from tests.onnx_bundles import sample
from vlmexport.calibrate import Sample
from vlmexport.measures.arrays import ArrayMeasure, Thinned
from vlmexport.parity.compare import one_runtime
from vlmexport.parity.compare.measured import SHOWN, Measured, Rows
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference import values as expected
from vlmexport.parity.reference.values import Live
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32, Features
from vlmexport.source.checkpoint import Checkpoint


class Watched(ReferenceRuntime):
    """Knows which of the arrays that it has given are still held by somebody."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._given: list[weakref.ref[F32]] = []

    def tokens(self, features: Features) -> F32:
        found = super().tokens(features)
        self._given.append(weakref.ref(found))
        return found

    @property
    def held(self) -> int:
        return sum(given() is not None for given in self._given)


def asked(count: int, together: bool) -> list[Sample]:
    """Two questions about each of so many images: side by side, or all first ones before all second ones."""
    numbers = [i // 2 for i in range(2 * count)] if together else [*range(count)] * 2
    return [replace(sample(0), id=f"{i}", image_id=f"{number}") for i, number in enumerate(numbers)]


@pytest.mark.parametrize("together", [True, False])
def test_visual_tokens_are_dropped_after_the_last_question(
    together: bool, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (expected, one_runtime):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 2)
    runtimes, held = (Watched(tiny), Watched(tiny)), []
    comparison = Comparison(Live(runtimes[0]), runtimes[1])
    comparison.run(asked(4, together), lambda: held.append([runtime.held for runtime in runtimes]))
    if together:
        assert max(map(max, held)) <= 1, held
    assert held[-1] == [0, 0]
    assert comparison.measured.samples == 8
    assert all(answer.equal for answer in comparison.measured.answers["chained"])


def test_rows_beyond_many_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(100_000)
    whole, few = Thinned(), [Thinned(), Thinned()]
    whole.add(values)
    monkeypatch.setattr(sys.modules[Thinned.__module__], "KEPT", 1000)
    for i, part in enumerate(np.split(values, 50)):
        few[i // 30].add(part)
    both = few[0] + few[1]
    assert whole.every == 1 < both.every
    assert max(len(one.kept) for one in (*few, both)) <= 1000
    assert (both.count, both.low) == (whole.count, whole.low)
    assert both.mean == pytest.approx(whole.mean)
    for percent in (1, 50):
        assert np.percentile(both.kept, percent) == pytest.approx(np.percentile(whole.kept, percent), abs=0.05)


def test_rows_are_kept_of_the_worst_image_and_of_some_others() -> None:
    measured, losses = Measured(), np.random.default_rng(0).random(3 * SHOWN)
    for i, loss in enumerate(losses):
        measured.image(f"{i}", Rows({"features": [np.full(4, 1 - loss)]}, ((2, 2),)))
    assert len(measured.images) == len(losses)
    shown = [name for name, rows in measured.images.items() if rows.cosines]
    assert len(shown) == SHOWN
    assert f"{losses.argmax()}" in shown
    halves = [Measured(), Measured()]
    for i, loss in enumerate(losses):
        halves[i % 2].image(f"{i}", Rows({"features": [np.full(4, 1 - loss)]}, ((2, 2),)))
    both = halves[0] + halves[1]
    shown = [name for name, rows in both.images.items() if rows.cosines]
    assert len(shown) == SHOWN
    assert f"{losses.argmax()}" in shown


def test_an_array_is_measured_as_a_whole_whatever_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Thinned.__module__], "KEPT", 8)
    measure, random = ArrayMeasure(), np.random.default_rng(0)
    arrays = [[random.standard_normal((6, 5)).astype(np.float32) for _ in range(2)] for _ in range(5)]
    rows = []
    for a, b in arrays:
        measure.add(a, b)
        rows.append(measure.last)
    metrics = measure.metrics()
    assert metrics["cosine"] == pytest.approx(np.concatenate(rows).mean())
    assert metrics["cosine_min"] == np.concatenate(rows).min()
