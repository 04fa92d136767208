"""Files are refused before the work, written after it, and written when there is no verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.results import result
from vlmexport.errors import NotEnoughData, UsageError
from vlmexport.report.destinations import Destinations, step_summary


def test_a_verdict(tmp_path: Path) -> None:
    destinations = Destinations(tmp_path / "j.xml", tmp_path / "m.md", summary=tmp_path / "summary.md")
    (tmp_path / "summary.md").write_text("before\n")
    destinations.write(result(False), tmp_path)
    written = (tmp_path / "m.md").read_text(encoding="utf-8")
    assert "fails at features" in written
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == f"before\n{written}"
    assert "<failure" in (tmp_path / "j.xml").read_text(encoding="utf-8")


def test_nothing_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Destinations().write(result(True), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_verdict_is_written_too(tmp_path: Path) -> None:
    destinations = Destinations(tmp_path / "j.xml", html=tmp_path / "old.html", summary=tmp_path / "summary.md")
    (tmp_path / "old.html").write_text("an older verdict")
    with pytest.raises(NotEnoughData), destinations.told_errors("demo"):
        raise NotEnoughData("3 samples are too few")
    assert "too few" in (tmp_path / "j.xml").read_text()
    assert "too few" in (tmp_path / "summary.md").read_text()
    assert not (tmp_path / "old.html").exists()


@pytest.mark.parametrize("name", [".", "no/j.xml"])
def test_a_file_that_cannot_be_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Destinations(junit=tmp_path / name)


def test_step_summary() -> None:
    assert step_summary({"GITHUB_STEP_SUMMARY": "x/y"}) == Path("x/y")
    assert step_summary({"GITHUB_STEP_SUMMARY": ""}) is None
    assert step_summary({}) is None
