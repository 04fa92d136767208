"""Agreement: decisions that differ, weighed by how much the float model preferred its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmexport.measures.gates import judge
from vlmexport.measures.logits import LogitsMeasure, agreement, log_softmax, preference
from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.compare.tasks import answer_metrics
from vlmexport.parity.result import Answer
from vlmexport.recipe import resolve

TIES = (0.000, 0.000, 0.001, 0.004, 0.006, 0.010, 0.041, 0.450)
"""Margins at which the answers of a right int8 bundle parted, of 120."""


@given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=8))
def test_preference_is_how_much_more_often_a_model_takes_its_own_token(values: list[float]) -> None:
    logits = np.array([values], np.float32)
    own = int(logits.argmax())
    p = np.exp(log_softmax(logits))[0]
    for other in range(len(values)):
        (found,) = preference(logits, np.array([own]), np.array([other]))
        assert found == pytest.approx((p[own] - p[other]) / (p[own] + p[other]), abs=1e-6)
        assert 0 <= found <= 1


def test_of_logits_by_hand() -> None:
    reference = np.array([[[0, 5, 0], [0, 1, 2], [3, 2.5, 0]]], np.float32)
    other = np.array([[[0, 5, 0], [0, 2, 1], [2.5, 3, 0]]], np.float32)
    measure = LogitsMeasure()
    measure.add(reference, other, [1, 2, 0])
    metrics = (measure + measure).metrics()
    assert metrics["top1"] == pytest.approx(1 / 3)
    assert metrics["agreement"] == pytest.approx(1 - (np.tanh(0.5) + np.tanh(0.25)) / 3)
    assert metrics["agreement_low"] < metrics["agreement"] < metrics["agreement_high"]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 60)), min_size=1, max_size=50))
def test_it_lies_between_equal_decisions_and_one(parted: list[tuple[float, int]]) -> None:
    lost, decisions = sum(weight for weight, _ in parted), sum(count for _, count in parted)
    metrics = agreement(lost, decisions)
    assert 1 - len(parted) / decisions - 1e-9 <= metrics["agreement"] <= 1
    assert -1e-9 <= metrics["agreement_low"] <= metrics["agreement"] + 1e-9
    assert metrics["agreement"] <= metrics["agreement_high"] + 1e-9


def answers(count: int, tokens: int, margins: tuple[float, ...] = (), at: int = 0) -> list[Answer]:
    """As many answers of so many tokens; one of each margin parts at a token."""
    rows = []
    for number in range(count):
        parts = number < len(margins)
        rows.append(
            Answer(
                sample=f"{number}", question="?", expected=["a"], reference="a", bundle="a", equal=not parts,
                first_difference=at if parts else None, margin=margins[number] if parts else None,
                decisions=at + 1 if parts else tokens,
                lost=float(np.tanh(margins[number] / 2)) if parts else 0.0,
            )
        )  # fmt: skip
    return rows


def judged(recipe: str, rows: list[Answer]) -> GateResult:
    stages = [StageResult(stage="answer", mode="chained", metrics=answer_metrics(rows))]
    gates = judge(resolve(recipe, environ={}).gates, stages)
    return next(gate for gate in gates if gate.metric == "agreement" and gate.stage == "answer")


@pytest.mark.parametrize("tokens", [1, 2, 3, 10])
def test_near_ties_are_no_loss(tokens: int) -> None:
    """Eight of 120 part, 6.7 %, all but one at a tie; as many at a margin of 5 are a loss."""
    rows = answers(120, tokens, TIES)
    assert answer_metrics(rows)["equal"] < 0.95
    found = judged("onnx-x86", rows)
    assert found.passed
    assert found.value is not None
    assert found.value > 0.997
    lost = tuple(5.0 for _ in range(max(8, 120 * tokens * 3 // 100)))
    assert not judged("onnx-x86", answers(120, tokens, lost)).passed


def test_a_caption_is_not_red_for_its_last_word() -> None:
    """Five of twenty captions of 40 words end otherwise, for certain; as many that begin otherwise are red."""
    margins = (5.0,) * 5
    rows = answers(20, 40, margins, at=39)
    assert answer_metrics(rows)["equal"] == 0.75
    assert judged("onnx-x86", rows).passed
    assert not judged("onnx-x86", answers(20, 40, (5.0,) * 15)).passed


@pytest.mark.parametrize(
    ("recipe", "changed"), [("onnx-fp32", 2), ("gguf-f32", 2), ("onnx-x86", 3), ("gguf-q4_k_m", 5)]
)
def test_twenty_short_answers_show_a_loss(recipe: str, changed: int) -> None:
    """Of twenty answers of three tokens, so many that change for certain are red; one never is a verdict on int8."""
    assert not judged(recipe, answers(20, 3, (6.0,) * changed)).passed
    assert judged("onnx-x86", answers(20, 3, (6.0,))).passed


def test_a_ruined_two_bit_bundle_is_red() -> None:
    """A third of the answers change for certain, as without an importance matrix."""
    assert not judged("gguf-q2_k", answers(120, 3, (3.0,) * 40)).passed
