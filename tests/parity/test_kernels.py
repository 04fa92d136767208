"""Two machines' values side by side: what is equal, what is not, what did not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlmexport.calibrate import heldout_samples
from vlmexport.errors import UsageError
from vlmexport.measures.stage_result import StageResult
from vlmexport.parity.check import check
from vlmexport.parity.compare.machines import KernelDifference


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def by_stage(found: KernelDifference) -> dict[str, StageResult]:
    return {stage.stage: stage for stage in found.stages()}


def test_values_are_counted_over_all_arrays() -> None:
    found = KernelDifference()
    found.add({"tokens": f32(1, 2, 3)}, {"tokens": f32(1, 2, 3.5)})
    found.add({"tokens": f32(1)}, {"tokens": f32(0.75)})
    assert by_stage(found)["tokens"].metrics == {"equal": 0.5, "max_abs": 0.5}


def test_answers_are_equal_as_a_whole() -> None:
    found = KernelDifference()
    for here, there in (([5, 6], [5, 6]), ([5, 6], [5]), ([5, 6], [5, 7]), ([2], [2])):
        found.add({"answer": np.array(here)}, {"answer": np.array(there)})
    assert by_stage(found)["answer"].metrics == {"equal": 0.5}


def test_what_did_not_run_or_has_another_shape_is_no_equality() -> None:
    found = KernelDifference()
    found.add({"logits": f32(1, 2), "features": f32(1), "pixels": f32(1)}, {"logits": f32(1), "pixels": f32(np.nan)})
    stages = by_stage(found)
    assert list(stages) == ["pixels", "features", "logits"]
    assert stages["pixels"].metrics["equal"] == 0
    assert (stages["features"].metrics, stages["features"].error) == ({}, "not run")
    assert "shape [1]" in (stages["logits"].error or "")


def test_few_images_are_asked_often() -> None:
    all_samples, by_image = heldout_samples(), heldout_samples(by_image=True)
    assert sorted(sample.id for sample in by_image) == sorted(sample.id for sample in all_samples)
    assert len({sample.image_id for sample in by_image[:20]}) == 5
    assert len({sample.image_id for sample in all_samples[:20]}) == 20


def test_dask_and_another_machine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--on arm64 does not run on Dask's workers"):
        check(tmp_path, dask="local:1", on="arm64")
