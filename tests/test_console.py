"""Progress: bars and rates on a terminal, one line without."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console as RichConsole

from vlmexport.console import QUIET, Console


def on_terminal() -> tuple[Console, StringIO]:
    console, shown = Console(), StringIO()
    console._err = RichConsole(file=shown, force_terminal=True, width=120, color_system=None)
    return console, shown


def test_bytes_have_a_rate() -> None:
    console, shown = on_terminal()
    with console.progress("language: a.gguf", 4_000_000, "bytes") as advance:
        advance(1_000_000)
        advance(3_000_000)
    assert "language: a.gguf" in shown.getvalue()
    assert "4.0/4.0 MB" in shown.getvalue()


def test_steps_are_counted() -> None:
    console, shown = on_terminal()
    with console.progress("calibrating", 3) as advance:
        for _ in range(3):
            advance()
    assert "3/3" in shown.getvalue()


def test_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("language: a.gguf", 785_400_000, "bytes") as advance:
        advance(785_400_000)
    with QUIET.progress("nobody looks", 1) as step:
        step()
    captured = capsys.readouterr()
    assert captured.err == "language: a.gguf, 785.4 MB\n"
    assert captured.out == ""
