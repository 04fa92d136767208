from __future__ import annotations

from tests.report.results import result, stock
from vlmexport.report.annotations import workflow_commands

GITHUB = {"GITHUB_ACTIONS": "true"}


def test_one_line_for_each_stage_that_fails() -> None:
    assert workflow_commands(result(False, bundle="a:b,c\n100%"), GITHUB) == (
        "::error title=a%3Ab%2Cc%0A100%25%3A features (local)::cosine is 0.7, the gate is ≥ 0.99\n"
    )
    assert workflow_commands(result(True), GITHUB) == ""


def test_what_does_not_count_is_a_warning() -> None:
    assert workflow_commands(result(True, stock=stock(0.5)), GITHUB).startswith(
        "::warning title=demo-x86%3A features (stock)"
    )


def test_silent_elsewhere() -> None:
    assert workflow_commands(result(False), {}) == ""
