"""Scores of short answers, against values counted by hand."""

from __future__ import annotations

import pytest

from vlmexport.measures.scores import exact, f1, says_yes, vqa, yes_no
from vlmexport.parity.compare.tasks import answer_metrics
from vlmexport.parity.result import Answer


def test_exact() -> None:
    assert exact(" Two  Cats. ", ["a dog", "two cats"]) == 1
    assert exact("two cats and a dog", ["two cats"]) == 0
    assert exact("", []) == 0


def test_vqa_leaves_each_annotator_out() -> None:
    answers = ["2", "2", "2", "two", "3", "3", "many", "many", "many", "a few"]
    assert vqa("two", answers) == pytest.approx((4 * 1.0 + 6 * 1.0) / 10)
    assert vqa("The 3", answers) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert vqa("many!", answers) == pytest.approx((3 * 2 / 3 + 7 * 1.0) / 10)
    assert vqa("none", answers) == 0
    assert vqa("1.5 m", ["1.5 m"] * 10) == vqa("isn't", ["isnt"] * 10) == 1


@pytest.mark.parametrize(
    ("text", "yes"),
    [("Yes", True), ("No, there is none.", False), ("There is not one", False), ("a dog. No cat", True), ("", True)],
)
def test_yes_as_pope_reads_it(text: str, yes: bool) -> None:
    assert says_yes(text) is yes
    assert yes_no(text, ["yes"]) == yes


def test_f1() -> None:
    found = f1([True, True, False, False, True], [True, False, True, False, True])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_share": 0.6})
    assert f1([False], [True])["f1"] == 0


def answer(task: str, expected: list[str], reference: str, bundle: str) -> Answer:
    row = {"task": task, "expected": expected, "reference": reference, "bundle": bundle}
    return Answer.model_validate({"sample": "1", "question": "?", "equal": reference == bundle} | row)


def test_tasks_of_one_check() -> None:
    rows = [
        answer("exact", ["cat"], "cat", "Cat."),
        answer("yes_no", ["yes"], "yes", "no"),
        answer("yes_no", ["no"], "yes", "no"),
        answer("exact", [], "anything", "else"),
    ]
    metrics = answer_metrics(rows)
    assert metrics["equal"] == 0
    assert (metrics["reference_accuracy"], metrics["accuracy"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (metrics["reference_f1"], metrics["f1"]) == (pytest.approx(2 / 3), 0)
    assert metrics["task_drop"] == 0
    assert "cider_d" not in metrics


def test_answers_that_nobody_knows_have_no_task() -> None:
    metrics = answer_metrics([answer("exact", [], "a", "a")])
    assert set(metrics) == {f"{name}{end}" for name in ("agreement", "equal") for end in ("", "_low", "_high")}


def test_captions_are_a_task_of_their_own() -> None:
    captions = {"a red cat": "on the mat", "two green birds": "in a tree", "one blue fish": "under water"}
    rows = [answer("caption", [f"{a} {b}"], f"{a} {b}", a) for a, b in captions.items()]
    metrics = answer_metrics(rows)
    assert metrics["reference_cider_d"] == pytest.approx(10)
    assert metrics["reference_bleu4"] == pytest.approx(1)
    assert 0 < metrics["cider_d"] < 10
    assert metrics["task_drop"] == pytest.approx(10 - metrics["cider_d"])
    assert metrics["task_drop_low"] <= metrics["task_drop"] <= metrics["task_drop_high"]
    assert "accuracy" not in metrics
