from __future__ import annotations

import io

from rich.console import Console

from tests.report.results import VIEWS, measured, result, views
from vlmexport.console import Screen
from vlmexport.parity.baseline import compared
from vlmexport.parity.result import ParityResult
from vlmexport.report.bundle import table
from vlmexport.report.terminal import parity


def shown(found: ParityResult) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(parity(found))
    return out.getvalue()


def test_a_failure_says_where_and_by_how_much() -> None:
    text = shown(result(False))
    assert "FAIL at features" in text
    assert "features (local): cosine is 0.7, the gate is ≥ 0.99" in text
    assert "did not run" in text
    assert "'dog', the float model says 'cat' (margin there 0.250)" in text


def test_a_budget_of_views_is_told() -> None:
    assert VIEWS in " ".join(shown(result(True, views=views())).split())


def test_a_pass() -> None:
    text = shown(result(True))
    assert "PASS  demo-x86" in text
    assert "the gate is" not in text
    assert "run with the kernels of another machine" in text


def test_the_baseline_stands_beside() -> None:
    now = compared(result(True), result(True, stages=measured(features={"cosine": 0.99999})), slack=0.1)
    text = shown(now)
    assert "FAIL at features" in text
    assert "features (local): cosine is 0.99995, the baseline's 0.99999 allows ≥ 0.99998" in text
    assert [cell.strip() for cell in text.splitlines()[4].split("│")][3:5] == ["cosine 0.99995", "cosine 0.99999"]


def test_files_of_a_bundle_keep_their_whole_names() -> None:
    """Two that differ in their last letters look alike where the ends are left out."""
    name = "onnx/decoder_model_merged_int8.onnx"
    files = [{"path": path, "component": "decoder", "bytes": 1} for path in (name, f"{name}_data")]
    out = io.StringIO()
    Screen(file=out, width=60).print(
        table({"bundle": "b", "recipe": "onnx-x86", "files": files, "bytes": 2}), soft_wrap=False
    )
    text = out.getvalue()
    assert "…" not in text
    assert text.count("decoder_model") == 2
