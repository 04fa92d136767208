"""What counts as a regression, and which files are no baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.manifests import manifest as made
from tests.manifests import source_named
from tests.report.results import measured, result
from vlmexport.errors import UsageError
from vlmexport.parity.baseline import compared, read_baseline, refuse_baseline
from vlmexport.parity.result import ParityResult
from vlmexport.recipe import parse


def of(samples: int = 20, **stages: dict[str, float]) -> ParityResult:
    return result(True, samples=samples, stages=measured(**stages), gates=[])


@pytest.mark.parametrize(
    ("stage", "metric", "old", "worst", "samples"),
    [
        ("tokens", "cosine", 0.99, 1 - 0.01 * 1.1 - 1e-5, 20),
        ("tokens", "nmse", 0.01, 0.011 + 1e-6, 20),
        ("logits", "kld", 0.05, 0.055 + 1e-3, 20),
        ("logits", "agreement", 0.9, 1 - 0.11 - 2e-3, 20),
        ("answer", "agreement", 1.0, 0.998, 1000),
        ("answer", "accuracy", 0.5, 1 - 0.55 - 0.01, 250),
    ],
)
def test_the_slack_is_a_share_of_the_loss_and_a_margin(
    stage: str, metric: str, old: float, worst: float, samples: int
) -> None:
    before, better = of(samples, **{stage: {metric: old}}), -1 if metric in ("nmse", "kld") else 1
    for step, passed in ((better * 1e-9, True), (-better * 1e-9, False)):
        now = compared(of(samples, **{stage: {metric: worst + step}}), before, slack=0.1)
        assert (now.passed, now.broken_stage) == (passed, None if passed else stage)
        assert now.baseline is not None
        (change,) = now.baseline.changes
        assert (change.old, change.bound) == (old, pytest.approx(worst))


def test_what_was_measured_and_is_no_longer_got_worse() -> None:
    before = of(tokens={"cosine": 0.99})
    assert not compared(of(tokens={}), before).passed
    assert not compared(of(), before).passed
    assert not compared(of(tokens={"cosine": float("nan")}), before).passed
    assert compared(of(tokens={"cosine": 0.99}, features={"cosine": 0.1}), before).passed


def test_a_gate_that_fails_is_named_first() -> None:
    failed = result(False, stages=measured(features={"cosine": 0.7}, tokens={"cosine": 0.5}))
    now = compared(failed, of(tokens={"cosine": 0.99}))
    assert (now.passed, now.broken_stage) == (False, "features")


def test_no_baseline(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    with pytest.raises(UsageError, match="does not exist"):
        read_baseline(path)
    for text in ("no json", "{}", of().model_dump_json().replace('"schema_version":3', '"schema_version":2')):
        path.write_text(text)
        with pytest.raises(UsageError, match="is no result of this schema: make it again"):
            read_baseline(path)
    path.write_text(of().model_dump_json())
    assert read_baseline(path) == of()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "onnx-arm64"}, "of onnx-arm64 for x86, this bundle is of onnx-x86 for x86"),
        ({"target": "arm64"}, "for arm64"),
        ({"inputs": {"weights": {}}}, r"another float model .* \(its weights differ: model\.safetensors\)"),
        (
            {"inputs": {"spec": {"language": {"rms_norm_eps": 1e-3, "rope_scaling": {"factor": 2.0}}}}},
            r"language\.rms_norm_eps: 0\.001 in the baseline, 1e-05 in the bundle; "
            r"language\.rope_scaling: \{\"factor\": 2\.0\} in the baseline, nothing in the bundle",
        ),
        ({"inputs": {"samples": "23"}}, r"on other samples \(20 samples\)"),
        ({"inputs": {"images": {"scene-1": "34"}}}, "other pictures under the same names: scene-1"),
    ],
)
def test_a_baseline_of_something_else(changes: dict[str, Any], message: str) -> None:
    source = source_named("demo", weights={"model.safetensors": "00"})
    recipe = parse({"name": "onnx-x86", "target": "x86"}, "test")
    manifest = made("onnx", source, recipe=recipe)
    path, right = Path("old.json"), result(True)
    refuse_baseline(path, right, manifest, right.inputs)
    if "inputs" in changes:
        changes = {"inputs": right.inputs.model_dump() | changes["inputs"]}
    with pytest.raises(UsageError, match=message):
        refuse_baseline(path, result(True, **changes), manifest, right.inputs)
