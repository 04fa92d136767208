from __future__ import annotations

import io

from rich.console import Console

from vlmexport.parity.result import Answer, GateResult, ParityResult, StageResult
from vlmexport.report.terminal import parity


def result(passed: bool) -> ParityResult:
    cosine = 0.99995 if passed else 0.7
    return ParityResult(
        bundle="demo-x86", kind="onnx", recipe="onnx-x86", reference="demo (torch)", runtime="onnxruntime",
        notes=["run with the kernels of another machine"], samples=20, images=5,
        stages=[
            StageResult(stage="features", mode="local", metrics={"cosine": cosine, "finite": 1}),
            StageResult(stage="tokens", mode="local", metrics={}, error="did not run"),
        ],
        gates=[
            GateResult(
                stage="features", mode="local", metric="cosine", value=cosine, bound=0.99, at_least=True, passed=passed
            )
        ],
        answers=[
            Answer(
                sample="1", question="What is this?", expected="cat", reference="cat", bundle="dog", equal=False,
                first_difference=0, margin=0.25,
            )
        ],
        passed=passed, broken_stage=None if passed else "features", seconds=1.0,
    )  # fmt: skip


def shown(passed: bool) -> str:
    out = io.StringIO()
    Console(file=out, width=160).print(parity(result(passed)))
    return out.getvalue()


def test_a_failure_says_where_and_by_how_much() -> None:
    text = shown(False)
    assert "FAIL at features" in text
    assert "features (local): cosine is 0.7, the gate is ≥ 0.99" in text
    assert "did not run" in text
    assert "'dog', the float model says 'cat' (margin there 0.250)" in text


def test_a_pass() -> None:
    text = shown(True)
    assert "PASS  demo-x86" in text
    assert "the gate is" not in text
    assert "run with the kernels of another machine" in text
