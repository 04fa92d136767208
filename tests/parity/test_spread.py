"""Measures of shards add up, and an evaluation on several processes gives the verdict that one gives."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_bundles import Bundles, picture
from vlmexport.calibrate import Sample
from vlmexport.measures.arrays import ArrayMeasure
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.parity.compare import spread
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.parity.compare.measured import Measured, Rows
from vlmexport.parity.result import Answer
from vlmexport.source.checkpoint import Checkpoint


def samples(pictures: int) -> list[Sample]:
    """Turn by turn: two questions about each picture."""
    return [
        Sample(f"{turn}-{i}", f"{i}", f"what is {turn} ?", partial(picture, i), answer="a chat" if turn else None)
        for turn in range(2)
        for i in range(pictures)
    ]


@pytest.fixture(autouse=True, scope="module")
def _short_answers() -> None:
    """As long as elsewhere: the other processes know of no shorter ones."""


def measured(seed: int) -> Measured:
    """Of one random sample."""
    generator = np.random.default_rng(seed)
    found = Measured(images={f"{seed // 2}": Rows()}, samples=1)
    a, b = generator.standard_normal((2, 1, 5, 8), np.float32)
    found.arrays["tokens", "chained"] = ArrayMeasure()
    found.arrays["tokens", "chained"].add(a, b)
    found.logits["local"] = LogitsMeasure()
    found.logits["local"].add(a, b, [1, 2])
    equal = bool(seed % 2)
    answer = Answer(
        sample=f"{seed}", question="?", expected=["a"], reference="a", bundle="a" if equal else "b", equal=equal
    )
    found.answers["chained"].append(answer)
    return found


def test_measures_add_up_in_any_order() -> None:
    parts = [measured(seed) for seed in range(4)]
    whole = sum(copy.deepcopy(parts), Measured())
    other = (parts[3] + parts[0] + (parts[2] + parts[1])).in_order([f"{seed}" for seed in range(4)])
    assert other.answers == whole.answers
    assert (other.images.keys(), other.samples) == ({"0", "1"}, 4)
    for a, b in zip(other.stages(), whole.stages(), strict=True):
        assert (a.stage, a.mode, a.metrics.keys()) == (b.stage, b.mode, b.metrics.keys())
        assert a.metrics == pytest.approx(b.metrics, rel=1e-12)


def test_an_error_of_a_part_is_one_of_the_whole() -> None:
    broken = Measured(errors={("logits", "local"): "no room"})
    for whole in (broken + measured(0), measured(0) + broken):
        (result,) = [stage for stage in whole.stages() if (stage.stage, stage.mode) == ("logits", "local")]
        assert result.error == "no room"


def test_samples_of_an_image_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "IMAGES", 2)
    assert [[sample.id for sample in shard] for shard in spread._shards(samples(3))] == [
        ["0-0", "1-0", "0-1", "1-1"],
        ["0-2", "1-2"],
    ]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    short: Checkpoint, onnx_bundle: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(spread, "IMAGES", 1)
    bundle: Path = onnx_bundle("fp32")
    single = run_samples(bundle, short, samples(2))
    steps: list[None] = []
    spread_out = spread.evaluate(bundle, short, samples(2), "local:2", lambda: steps.append(None))
    assert len(steps) == 4
    assert (spread_out.runtime, spread_out.reference, spread_out.notes) == (
        single.runtime, single.reference, single.notes,
    )  # fmt: skip
    assert [row.model_dump(exclude={"margin"}) for row in spread_out.measured.answers["chained"]] == [
        row.model_dump(exclude={"margin"}) for row in single.measured.answers["chained"]
    ]
    for ours, one in zip(spread_out.measured.stages(), single.measured.stages(), strict=True):
        assert (ours.stage, ours.mode, ours.error) == (one.stage, one.mode, one.error)
        for name in ("cosine", "cosine_p1", "agreement", "top1", "equal", "finite"):
            assert ours.metrics.get(name) == pytest.approx(one.metrics.get(name), abs=1e-4)
