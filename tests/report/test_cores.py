"""A result of several cores on the terminal: one table, and the core that fails by name."""

from __future__ import annotations

import io
import re
from xml.etree.ElementTree import fromstring

from rich.console import Console

from tests.report.test_html import manifest
from vlmexport.artifact.bundle.card import _core
from vlmexport.artifact.bundle.summary import CoreSummary
from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.result import Answer, CoreResult, Inputs, ParityResult
from vlmexport.report.html import html
from vlmexport.report.junit import junit
from vlmexport.report.markdown import markdown
from vlmexport.report.terminal import parity


def stage(**metrics: float) -> StageResult:
    return StageResult(stage="tokens", mode="chained", metrics=metrics)


def core(name: str, cosine: float) -> CoreResult:
    passed = cosine >= 0.99
    gate = GateResult(
        stage="tokens", mode="chained", metric="cosine", value=cosine, bound=0.99, at_least=True, passed=passed
    )
    answer = Answer(
        sample="1", question="What is this?", expected=["cat"], reference="cat", bundle="cat" if passed else "dog",
        equal=passed, first_difference=None if passed else 0, margin=None if passed else 0.25,
    )  # fmt: skip
    return CoreResult(
        core=name, runtime=f"onnxruntime on {name}", stages=[stage(cosine=cosine)], gates=[gate], answers=[answer],
        passed=passed, broken_stage=None if passed else "tokens", beside=[stage(equal=0.25, max_abs=0.125)],
    )  # fmt: skip


def result() -> ParityResult:
    """One core passes, the other does not; what runs here would fail, and does not count."""
    found = [core("cortex-a76", 0.995), core("max", 0.75)]
    here = GateResult(
        stage="tokens", mode="chained", metric="cosine", value=0.5, bound=0.99, at_least=True, passed=False
    )
    return ParityResult(
        bundle="demo-arm64", kind="onnx", recipe="onnx-arm64", reference="demo", runtime="onnxruntime", notes=[],
        samples=20, images=5, stages=[stage(cosine=0.5)], gates=[here], answers=[], passed=False, broken_stage="tokens",
        seconds=60.0, cores=found, target="arm64", data="held-out scenes", versions={},
        inputs=Inputs(weights={}, files={}, samples="", images={}, spec={}),
    )  # fmt: skip


def shown() -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(parity(result()))
    return out.getvalue()


def test_all_are_side_by_side() -> None:
    rows = [line.split("│") for line in shown().splitlines() if "│" in line]
    cells = {row[2].strip(): [cell.strip() for cell in row[3:7]] for row in rows}
    assert cells["cosine"] == ["0.5", "0.995", "0.75", "FAIL ≥ 0.99"]
    assert cells["equal to here"] == ["", "0.25", "0.25", ""]
    assert cells["off from here by"] == ["", "0.125", "0.125", ""]


def test_the_core_that_fails_is_named() -> None:
    text = shown()
    assert "tokens on max: cosine is 0.75, the gate is ≥ 0.99" in text
    assert "tokens on cortex-a76" not in text
    assert "What is this? → 'dog' on max, the float model says 'cat' (margin there 0.250)" in text
    assert "on cortex-a76, the float model" not in text
    assert "passes on onnxruntime on cortex-a76" in text
    assert "FAIL at tokens  demo-arm64: 20 samples, cortex-a76 and max" in text


def test_a_core_on_the_card() -> None:
    found = CoreSummary(
        core="max", runtime="onnxruntime on max", passed=False, broken_stage="tokens", stages={},
        beside={"answer": {"equal": 0.95}},
    )  # fmt: skip
    assert _core(found).startswith("- onnxruntime on max: **failed** at tokens; 95% of its answers")


def test_every_core_is_a_case_and_this_machine_does_not_count() -> None:
    suite = next(iter(fromstring(junit(result()))))
    cases = {case.get("name"): [part.tag for part in case] for case in suite.findall("testcase")}
    assert cases == {
        "tokens (chained)": ["skipped", "system-out"],
        "tokens (cortex-a76)": ["system-out"],
        "tokens (max)": ["failure", "system-out"],
    }
    (skipped,) = suite.findall("testcase/skipped")
    assert "the verdict is that of the cores" in skipped.get("message", "")


def test_cores_in_markdown_and_html() -> None:
    assert "itself, on cortex-a76" in markdown(result())
    assert "**tokens** (max)" in markdown(result())
    page = html(result(), manifest())
    assert "itself, on max" in page
    assert "The verdict is that of cortex-a76 and max" in page
    assert re.search(r'<li class="broke">\s*<span class="stage">tokens', page)
