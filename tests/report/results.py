"""Results of checks, as small as renderers need them."""

from __future__ import annotations

from typing import Any

from vlmexport.measures.stage_result import GateResult, Mode, StageResult
from vlmexport.parity.result import Answer, Inputs, ParityResult, StockResult, ViewsResult


def gate(value: float, stage: str = "features", mode: Mode = "local") -> GateResult:
    """At least 0.99."""
    return GateResult(
        stage=stage, mode=mode, metric="cosine", value=value, bound=0.99, at_least=True, passed=value >= 0.99
    )


def stock(cosine: float) -> StockResult:
    """Features alone."""
    judged = gate(cosine, mode="chained")
    return StockResult(
        samples=20,
        stages=[StageResult(stage="features", mode="chained", metrics={"cosine": cosine, "finite": 1})],
        gates=[judged],
        passed=judged.passed,
        broken_stage=None if judged.passed else "features",
    )


def views() -> ViewsResult:
    """A budget of five views."""
    stages = measured(
        "chained", logits={"kld": 0.25, "agreement": 0.75},
        answer={"equal": 0.5, "accuracy": 0.625, "reference_accuracy": 0.875},
    )  # fmt: skip
    return ViewsResult(most=5, without=17, samples=20, stages=stages)


VIEWS = (
    "he budget of views (at most 5 of a picture, 17 without it) costs the float model by itself, on 20 samples: "
    "kld 0.25, agreement 0.75, equal answers 0.5, accuracy 0.625 (0.875 without it)"
)
"""What reports say of it, behind their first letter."""


def measured(mode: Mode = "local", **stages: dict[str, float]) -> list[StageResult]:
    """Stage → its metrics."""
    return [StageResult(stage=stage, mode=mode, metrics=metrics) for stage, metrics in stages.items()]


def result(passed: bool, **changes: Any) -> ParityResult:
    """Features were measured, tokens did not run; one answer differs."""
    judged = gate(0.99995 if passed else 0.7)
    values = {
        "bundle": "demo-x86", "kind": "onnx", "recipe": "onnx-x86", "target": "x86", "reference": "demo (torch)",
        "runtime": "onnxruntime", "notes": ["run with the kernels of another machine"], "samples": 20, "images": 5,
        "stages": [
            StageResult(stage="features", mode="local", metrics={"cosine": judged.value or 0.0, "finite": 1}),
            StageResult(stage="tokens", mode="local", metrics={}, error="did not run"),
        ],
        "gates": [judged],
        "answers": [
            Answer(
                sample="1", question="What is this?", expected=["cat"], reference="cat", bundle="dog", equal=False,
                first_difference=0, margin=0.25,
            )
        ],
        "passed": passed, "broken_stage": None if passed else "features", "seconds": 1.0,
        "inputs": Inputs(
            weights={"model.safetensors": "00"}, files={"a.onnx": "11"}, samples="22", images={"scene-1": "33"},
            spec={"language": {"rms_norm_eps": 1e-5, "rope_scaling": None}},
        ),
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    return ParityResult.model_validate(values | changes)
