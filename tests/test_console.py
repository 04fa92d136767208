"""Progress: bars and rates on a terminal, one line without."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console as RichConsole

from vlmexport.console import QUIET, Console
from vlmexport.errors import UsageError, first_line


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


def test_steps_of_an_earlier_run_have_no_rate() -> None:
    """A calibration that goes on: 70 of 72 are done, and the 71st takes ten seconds."""
    now = [0.0]
    console, shown = on_terminal()
    console._err.get_time = lambda: now[0]
    with console.progress("calibrating", 72, done=70) as advance:
        now[0] = 10.0
        advance()
    assert "71/72" in shown.getvalue()
    assert "10.0 s each" in shown.getvalue()


def test_one_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("language: a.gguf", 785_400_000, "bytes") as advance:
        advance(785_400_000)
    with QUIET.progress("nobody looks", 1) as step:
        step()
    captured = capsys.readouterr()
    assert captured.err == "language: a.gguf, 785.4 MB\n"
    assert captured.out == ""


def test_what_takes_long_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a log: a line every half a minute, even where a step does not end; none for what is done; nothing after it."""
    with Console().progress("calibrating", 3) as advance:
        advance()
    assert capsys.readouterr().err == "calibrating\n"
    monkeypatch.setattr("vlmexport.console.HEARTBEAT", 0.01)
    said = ""
    with Console().bars({"vision": 2_000_000, "language": 5_000_000}) as advances:
        advances["vision"](2_000_000)
        advances["language"](1_000_000)
        while said.count("1.0 MB of 5.0 MB") < 2:
            said += capsys.readouterr().err
    assert said.startswith("vision, 2.0 MB\nlanguage, 5.0 MB\nlanguage: 1.0 MB of 5.0 MB, after 0 s\n")
    assert "vision: 2" not in said


@pytest.mark.parametrize("console", [Console(as_json=True), Console(quiet=True)])
def test_no_progress(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("calibrating", 3) as advance:
        advance()
    assert capsys.readouterr().err == ""


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(UsageError("two\nlines of [bold]text[/bold]", "say\r\none :smile:"))
    assert capsys.readouterr().err == "error: two lines of [bold]text[/bold]: say one :smile:\n"


def test_an_error_without_words_is_named() -> None:
    assert [first_line(error) for error in (ValueError(), ValueError("\n a\nb"), OSError(" "))] == [
        "ValueError", "a", "OSError"
    ]  # fmt: skip
