"""docs/families.md says what ``benchmarks/families.py`` measured, and of every family."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from vlmexport import families


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("family_table")


def test_the_page_is_that_of_the_figures(table: ModuleType) -> None:
    text, found = table.PAGE.read_text(encoding="utf-8"), json.loads(table.RESULTS.read_text(encoding="utf-8"))
    assert table.complaint(text, found) is None
    found["rows"][0]["formats"]["ONNX fp32"] = {"status": "refused", "reason": "no"}
    assert "is not what" in table.complaint(text, found)


def test_every_family_has_a_row(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text, found = table.PAGE.read_text(encoding="utf-8"), json.loads(table.RESULTS.read_text(encoding="utf-8"))
    assert {row["family"] for row in found["rows"]} == set(families.names())
    monkeypatch.setattr(families, "names", lambda: ["another", "design"])
    assert "without a row: another" in table.complaint(text, found)
