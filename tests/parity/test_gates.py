from __future__ import annotations

import math

import pytest

from vlmexport.measures.gates import broken_stage, judge
from vlmexport.measures.logits import agreement
from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.check import _verdict
from vlmexport.parity.result import CoreResult
from vlmexport.recipe import Gates

GATES = Gates(features_cosine=0.99, tokens_cosine=0.99, logits_kld=0.1, answer_equal=0.9)


def measured(**changes: float) -> list[StageResult]:
    values = {"features": 1.0, "tokens": 1.0, "logits": 0.0, "answer": 1.0} | changes
    names = {"features": "cosine", "tokens": "cosine", "logits": "kld", "answer": "equal"}
    stages = [StageResult(stage="pixels", mode="chained", metrics={"finite": 1, "max_abs": 0})]
    for stage, value in values.items():
        for mode in ("local", "chained"):
            stages.append(StageResult(stage=stage, mode=mode, metrics={names[stage]: value, "finite": 1}))
    return stages


def test_all_pass() -> None:
    gates = judge(GATES, measured())
    assert gates
    assert all(gate.passed for gate in gates)
    assert broken_stage(gates) is None


def test_each_stage_is_named() -> None:
    for change in ({"features": 0.5}, {"tokens": 0.5}, {"logits": 0.5}, {"answer": 0.5}):
        assert broken_stage(judge(GATES, measured(**change))) == next(iter(change))


def test_the_first_stage_that_differs_is_named_whatever_feeds_it() -> None:
    """Pixels are chained alone, and an answer may be red when fed by the float model too: by a tie, or at its end."""
    stages = measured()
    for stage in stages:
        if stage.stage == "answer" or (stage.stage == "tokens" and stage.mode == "chained"):
            stage.metrics |= {"cosine": 0.2, "equal": 0.2}
    stages[0].metrics["max_abs"] = 1.8
    gates = Gates(pixels_max_abs=1e-5, **GATES.model_dump(exclude={"pixels_max_abs"}))
    failed = {(gate.stage, gate.mode) for gate in judge(gates, stages) if not gate.passed}
    assert ("answer", "local") in failed
    assert broken_stage(judge(gates, stages)) == "pixels"
    assert broken_stage(judge(gates, stages)[::-1]) == "pixels"
    assert broken_stage(judge(gates, stages[1:])) == "pixels", "not run"
    assert broken_stage(judge(GATES, stages)) == "tokens"


def test_nan_fails() -> None:
    assert not all(gate.passed for gate in judge(GATES, measured(tokens=math.nan)))


def test_a_stage_that_did_not_run_fails() -> None:
    stages = [stage for stage in measured() if stage.stage != "answer"]
    failed = [gate for gate in judge(GATES, stages) if not gate.passed]
    assert [gate.stage for gate in failed] == ["answer"]
    assert failed[0].value is None


def test_an_error_fails_even_without_a_gate_for_it() -> None:
    stages = [StageResult(stage="pixels", mode="chained", metrics={}, error="boom"), *measured()[1:]]
    assert broken_stage(judge(GATES, stages)) == "pixels"


def test_accuracy_is_judged_where_an_answer_is_known_and_only_there() -> None:
    gates = GATES.model_copy(update={"answer_task_drop": 0.02})
    assert not any(gate.metric == "task_drop" for gate in judge(gates, measured()))
    stages = measured()
    for stage in stages:
        if stage.stage == "answer":
            stage.metrics |= {"accuracy": 0.9, "task_drop": 0.05, "task_drop_low": 0.04, "task_drop_high": 0.06}
    assert [gate.metric for gate in judge(gates, stages) if not gate.passed] == ["task_drop", "task_drop"]


def test_a_loss_of_accuracy_is_judged_as_measured_where_the_data_resolve_the_bound() -> None:
    gates = Gates(answer_task_drop=0.02)
    for half, passed in ((0.049, True), (0.019, False), (0.004, False)):
        stages = measured()
        for stage in stages:
            if stage.stage == "answer":
                stage.metrics |= {"accuracy": 0.9, "task_drop": 0.025}
                stage.metrics |= {"task_drop_low": 0.025 - half, "task_drop_high": 0.025 + half}
        assert all(gate.passed for gate in judge(gates, stages) if gate.metric == "task_drop") is passed


def test_a_local_gate_holds_where_the_reference_feeds() -> None:
    gates = Gates(logits_local_nmse=1e-10)
    stages = [
        StageResult(stage="logits", mode="local", metrics={"nmse": 1e-12, "finite": 1}),
        StageResult(stage="logits", mode="chained", metrics={"nmse": 1e-8, "finite": 1}),
    ]
    judged = [gate for gate in judge(gates, stages) if gate.metric == "nmse"]
    assert [(gate.mode, gate.passed) for gate in judged] == [("local", True)]
    stages[0].metrics["nmse"] = 3e-10
    assert broken_stage([gate for gate in judge(gates, stages) if gate.stage == "logits"]) == "logits"


@pytest.mark.parametrize(
    ("lost", "decisions", "passes"),
    [(30, 2000, True), (50, 2000, False), (1, 54, True), (4, 54, False), (0, 1, True), (54, 54, False)],
)
def test_agreement_is_judged_as_measured_where_the_data_resolve_the_gate(
    lost: float, decisions: int, passes: bool
) -> None:
    """At 0.98, 1.5 % and 2.5 % of 2,000 are told apart; of 54, one (1.9 %) and four (7.4 %)."""
    stages = [StageResult(stage="answer", mode="chained", metrics=agreement(lost, decisions))]
    (judged,) = judge(Gates(answer_agreement=0.98), stages)[-1:]
    assert (judged.metric, judged.passed) == ("agreement", passes)


@pytest.mark.parametrize(("equal", "passes"), [(0.949, False), (0.95, True)])
def test_a_share_is_judged_as_measured(equal: float, passes: bool) -> None:
    metrics = {"equal": equal, "equal_low": 0.8, "equal_high": 1.0}
    stages = [StageResult(stage="answer", mode="chained", metrics=metrics)]
    (gate,) = [gate for gate in judge(Gates(answer_equal=0.95), stages) if gate.metric == "equal"]
    assert gate.passed == passes


@pytest.mark.parametrize("passed", [True, False])
def test_what_does_not_depend_on_the_machine_counts_on_its_cores_too(passed: bool) -> None:
    """Pixels that a client makes, and weights; what else fails here does not."""
    client = GateResult(
        stage="pixels", mode="chained", metric="torchvision_max_abs", value=0.1, bound=0.05, at_least=False,
        passed=passed,
    )  # fmt: skip
    here = [client, *judge(GATES, measured(features=0.5))]
    core = CoreResult(
        core="max", runtime="", stages=[], gates=[], answers=[], beside=[], passed=True, broken_stage=None
    )
    assert _verdict(here, [], [client])[0] is False
    assert _verdict(here, [core], [client]) == (passed, None if passed else "pixels")
