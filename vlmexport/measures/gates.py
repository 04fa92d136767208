"""Judge measurements by the recipe's gates. NaN, a shape that differs or a stage that did not run is a failure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmexport.measures.stage_result import STAGES, GateResult, Mode, StageResult
from vlmexport.recipe import Gates

_LOCAL = "local_"
"""How a gate begins, behind its stage, that holds only where the stage is fed by the reference."""

AT_LEAST = {"cosine", "cosine_p1", "sqnr_db", "agreement", "top1", "equal", "accuracy", "finite"}
_BY_CERTAINTY = {"task_drop": 0.0, "agreement": 1.0}
"""Measures of few samples, judged by what is certain: their value where nothing is lost."""


def judge(gates: Gates, stages: list[StageResult], more: Sequence[GateResult] = ()) -> list[GateResult]:
    """Every gate that is set, for every mode in which its stage was measured; and that all values are finite.

    Args:
        more: gates that were judged elsewhere, to stand with those of their stages.
    """
    results = []
    modes: dict[str, list[StageResult]] = {}
    for result in stages:
        modes.setdefault(result.stage, []).append(result)
    for stage in STAGES:
        for result in modes.get(stage, [StageResult(stage=stage, mode="chained", metrics={}, error="did not run")]):
            bounds = bounds_of(gates, stage, result.mode)
            known = _without_task(bounds) if _answers_unknown(result) else bounds
            results += [_one(stage, result.mode, metric, bound, result) for metric, bound in known.items()]
        results += [gate for gate in more if gate.stage == stage]
    return results


def _answers_unknown(result: StageResult) -> bool:
    """Whether answers were compared, but no sample says which one is right: then there is no task to judge."""
    return "equal" in result.metrics and "task_drop" not in result.metrics


def _without_task(bounds: dict[str, float]) -> dict[str, float]:
    return {metric: bound for metric, bound in bounds.items() if metric != "task_drop"}


def bounds_of(gates: Gates, stage: str, mode: Mode) -> dict[str, float]:
    """Metric → bound for a stage; ``finite`` always."""
    found = {} if stage == "answer" else {"finite": 1.0}
    for name, value in gates.model_dump().items():
        prefix, metric = name.split("_", 1)
        if prefix != stage or value is None:
            continue
        if metric.startswith(_LOCAL):
            if mode != "local":
                continue
            metric = metric.removeprefix(_LOCAL)
        found[metric] = float(value)
    return found


def holds(gates: Gates, stage: str, metrics: dict[str, float]) -> bool:
    """Whether measurements of one stage, taken before there is a bundle, pass its gates, each as it was measured."""
    return all(
        metric in metrics and _passes(metric, metrics[metric], bound)
        for metric, bound in bounds_of(gates, stage, "local").items()
    )


def _one(stage: str, mode: Mode, metric: str, bound: float, result: StageResult) -> GateResult:
    value = None if result.error else _judged(metric, bound, result.metrics)
    passed = value is not None and _passes(metric, value, bound)
    return GateResult(
        stage=stage, mode=mode, metric=metric, value=value, bound=bound, at_least=metric in AT_LEAST, passed=passed
    )


def _passes(metric: str, value: float, bound: float) -> bool:
    return value >= bound if metric in AT_LEAST else value <= bound


def _judged(metric: str, bound: float, metrics: dict[str, float]) -> float | None:
    """The value that is held against the bound: of a loss that the data cannot resolve, the certain part.

    One answer of forty is 2.5 points and says nothing about a bound of 2; of a thousand, 25 answers do.
    """
    best = _BY_CERTAINTY.get(metric)
    if best is None or metric not in metrics:
        return metrics.get(metric)
    low, high = metrics[f"{metric}_low"], metrics[f"{metric}_high"]
    if (high - low) / 2 <= abs(bound - best):
        return metrics[metric]
    return high if metric in AT_LEAST else low


def broken_stage(gates: Sequence[GateResult]) -> str | None:
    """The stage to look at: the first that fails, whatever fed it. What is behind it may only inherit."""
    return earliest(gate.stage for gate in gates if not gate.passed)


def earliest(stages: Iterable[str | None]) -> str | None:
    """The stage that runs first; None where there is none."""
    return min((stage for stage in stages if stage), key=STAGES.index, default=None)
