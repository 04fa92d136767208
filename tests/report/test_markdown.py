"""Markdown that GitHub shows as it is meant."""

from __future__ import annotations

from tests.report.results import VIEWS, measured, result, stock, views
from vlmexport.errors import NotEnoughData
from vlmexport.parity.baseline import compared
from vlmexport.report.markdown import markdown, markdown_of_error


def cells(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_verdict_and_stages() -> None:
    text = markdown(result(False))
    assert text.startswith("## demo-x86 fails at features\n")
    assert cells(text)[1] == ["features", "reference", "cosine 0.7", "**FAIL**"]
    assert "- **features** (local): cosine is 0.7, the gate is ≥ 0.99" in text
    assert "1 of 1 answers differ" in text
    assert ["What is this?", "cat", "dog", "0.250"] in cells(text)
    assert markdown(result(True)).startswith("## demo-x86 passes\n")


def test_stock_is_shown_and_its_failures_only_where_they_count() -> None:
    relaxed, strict = (markdown(result(False, stock=stock(0.5), strict_stock=counts)) for counts in (False, True))
    for text in (relaxed, strict):
        assert ["features", "itself, stock", "cosine 0.5", "**FAIL**"] in cells(text)
    assert "(stock)" not in relaxed
    assert "**features** (stock): cosine is 0.5" in strict


def test_a_budget_of_views_is_told() -> None:
    assert VIEWS in markdown(result(True, views=views())).replace("\\", "")
    assert "budget of views" not in markdown(result(True))


def test_many_answers_are_cut() -> None:
    (one,) = result(True).answers
    text = markdown(result(True, answers=[one] * 21))
    assert "21 of 21 answers differ, the first 20" in text
    assert text.count("| What is this? |") == 20


def test_no_verdict() -> None:
    assert "too few" in markdown_of_error("demo", NotEnoughData("3 samples are too few", "pass 20"))


def test_the_baseline_stands_beside() -> None:
    now = compared(result(True), result(True, stages=measured(features={"cosine": 0.99999})), slack=0.1)
    assert cells(markdown(now))[1] == ["features", "reference", "cosine 0.99995", "cosine 0.99999", "**FAIL**"]
    assert "the baseline's 0.99999 allows" in markdown(now)
