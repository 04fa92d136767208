"""What an unrepaired llama.cpp makes of a bundle: measured beside the repaired run, gated on request."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.command import vlmexport
from tests.parity.test_check import samples, write_data
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.parity import ParityResult, check
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.report.terminal import parity
from vlmexport.runtime.llamacpp import vision
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def _wrong_library() -> None:
    if probe().right:
        pytest.skip("the installed libmtmd places the class token right: nothing to repair")


@pytest.fixture(scope="module")
def bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(str(tiny_folder), resolve("gguf-f32", environ={}), tmp_path_factory.mktemp("stock") / "bundle")


@pytest.fixture(scope="module")
def result(bundle: Path) -> ParityResult:
    return check(bundle, samples=samples(24))


def shown(result: ParityResult) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(parity(result))
    return out.getvalue()


def test_both_are_reported(result: ParityResult, bundle: Path) -> None:
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    stock = result.stock
    assert stock is not None
    assert (stock.samples, stock.passed, stock.broken_stage) == (20, False, "features")
    assert [(stage.stage, stage.mode) for stage in stock.stages] == [
        (name, "chained") for name in ("pixels", "features", "tokens", "logits", "answer")
    ]
    measured = {stage.stage: stage.metrics for stage in stock.stages}
    assert measured["features"]["cosine"] < 0.9
    assert measured["logits"]["kld"] > 10 * (result.metric("logits", "kld") or 0)
    assert json.loads((bundle / "parity.json").read_text())["stock"]["passed"] is False
    assert "as stock llama.cpp computes it: **failed** at features, on 20 samples" in (bundle / "README.md").read_text()


def test_on_the_terminal(result: ParityResult) -> None:
    text = shown(result)
    assert "itself, stock" in text
    assert "PASS  bundle" in text
    assert "As stock llama.cpp computes it, this bundle FAILS at features (20 samples); see docs/llama-cpp.md" in text


def test_strict_stock_gates_on_it(bundle: Path, tmp_path: Path) -> None:
    command = ("check", bundle, "--data", write_data(tmp_path, 20), "-q")
    codes = [vlmexport(*command, *more).returncode for more in ((), ("--strict-stock",))]
    assert codes == [0, 1]
    result = ParityResult.model_validate_json((bundle / "parity.json").read_text())
    assert (result.passed, result.broken_stage, result.strict_stock) == (False, "features", True)
    assert all(gate.passed for gate in result.gates)
    assert "FAIL at features" in shown(result)


def test_pictures_that_are_not_square_do_not_hide_the_rest(bundle: Path) -> None:
    """libmtmd resizes before it pads: that is its deviation, shown first, and the bundle is right all the same."""
    cut = [
        replace(sample, image_id=f"wide-{sample.image_id}", load=lambda load=sample.load: load().crop((0, 0, 300, 200)))
        for sample in samples(20)
    ]
    found = check(bundle, samples=cut)
    assert found.passed, [gate for gate in found.gates if not gate.passed]
    assert found.stock is not None
    assert (found.stock.passed, found.stock.broken_stage) == (False, "pixels")
    assert (found.metric("pixels", "max_abs") or 0) < 1e-5
    assert "As stock llama.cpp computes it, this bundle FAILS at pixels (20 samples)" in shown(found)
    assert any("made square before libmtmd gets it" in note for note in found.notes)


def test_a_library_that_is_right_runs_once(bundle: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "probe", lambda: replace(probe(), class_token="first", stock=1.0))
    run = run_samples(bundle, open_checkpoint(tiny_folder), samples(2), stock=2)
    assert run.stock is None
    assert any("computed right" in note for note in run.notes)


def test_no_more_samples_than_asked_for(bundle: Path, tiny_folder: Path) -> None:
    run = run_samples(bundle, open_checkpoint(tiny_folder), samples(3), stock=2)
    assert run.stock is not None
    assert (run.stock.samples, run.measured.samples) == (2, 3)
    assert run_samples(bundle, open_checkpoint(tiny_folder), samples(1)).stock is None
    assert read_manifest(bundle).kind == "gguf"
