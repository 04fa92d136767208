"""The demo for arm64 on arm64's own kernels: two cores, this machine and the float model side by side."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from tests.command import vlmexport
from tests.onnx_bundles import Bundles
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import heldout_samples
from vlmexport.parity import ParityResult, check
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.report.terminal import parity
from vlmexport.runtime.ort.arm64.root import CORES, native

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(emulated: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = resolve("onnx-arm64", {"calibration.samples": 12, "onnx.fallback": "predicted"}, {})
    return export("demo", recipe, tmp_path_factory.mktemp("arm64") / "demo-arm64")


@pytest.fixture(scope="module")
def result(bundle: Path) -> ParityResult:
    """Of one image, which takes some ten seconds a core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("vlmexport.parity.samples"), "MIN_SAMPLES", 1)
        return check(bundle, samples=heldout_samples(2, by_image=True), on="arm64")


def test_both_cores_pass_the_gates(result: ParityResult) -> None:
    assert [core.core for core in result.cores] == list(CORES)
    for core in result.cores:
        assert core.passed, [gate for gate in core.gates if not gate.passed]
        assert [(stage.stage, stage.mode) for stage in core.stages] == [
            (name, "chained") for name in ("pixels", "features", "tokens", "logits", "answer")
        ]
        judged = {(gate.stage, gate.metric) for gate in core.gates}
        assert {("tokens", "sqnr_db"), ("logits", "agreement"), ("answer", "agreement")} <= judged
    assert result.passed
    assert result.broken_stage is None


def test_they_compute_what_is_computed_here(result: ParityResult) -> None:
    for core in result.cores:
        beside = {stage.stage: stage.metrics for stage in core.beside}
        assert beside["pixels"] == {"equal": 1.0, "max_abs": 0.0}
        assert beside["answer"] == {"equal": 1.0}
        for stage in ("features", "tokens", "logits"):
            assert beside[stage]["equal"] < 1, "these are the kernels of this machine"
            own = next(one for one in core.stages if one.stage == stage)
            assert beside[stage]["max_abs"] < own.metrics["max_abs"]


def test_all_three_are_reported(result: ParityResult, bundle: Path) -> None:
    written = json.loads((bundle / "parity.json").read_text())
    assert [core["core"] for core in written["cores"]] == list(CORES)
    named = [(core["kernels"]["name"], core["kernels"]["saturates"]) for core in written["cores"]]
    assert named == [("dot product", False), ("i8mm", False)]
    manifest, page = read_manifest(bundle), (bundle / "README.md").read_text()
    assert manifest.parity is not None
    assert [core.passed for core in manifest.parity.cores] == [True, True]
    assert "measured on cortex-a76" in page
    assert "on arm64 max (dot product, i8mm) under QEMU 10." in page
    assert "int8 by i8mm" in page
    out = io.StringIO()
    Console(file=out, width=160).print(parity(result))
    assert "PASS  demo-arm64: 2 samples, cortex-a76 and max" in out.getvalue()


@pytest.mark.skipif(native(), reason="this machine is arm64: nothing needs to be set up")
def test_where_it_is_not_set_up(onnx_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path))
    result = vlmexport("check", onnx_bundle("int8"), "--on", "arm64")
    assert_one_line_error(result, 4, "not set up", "make arm64")
