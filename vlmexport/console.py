"""The one output sink. Results go to stdout; progress, notes and errors to stderr.

No colour and no bar without a terminal; ``NO_COLOR`` is honoured (rich does both).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from vlmexport.errors import VlmExportError


class Console:
    """Human, ``--json`` or ``--quiet``.

    Args:
        as_json: results as one JSON document on stdout, nothing else there.
        quiet: no progress and no notes.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def result(self, human: RenderableType, data: Any) -> None:
        """A command's result: for people, or the same facts as JSON."""
        if self.as_json:
            self._out.out(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True), highlight=False)
        else:
            self._out.print(human)

    def stream(self, text: str) -> None:
        """A piece of a result that grows (an answer being decoded)."""
        if not self.as_json:
            self._out.out(text, end="", highlight=False)

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""
        if not self.quiet:
            self._err.print(text, style="dim", markup=False)

    def error(self, error: VlmExportError) -> None:
        """One clear line: what, where, what to do."""
        if self.as_json:
            document = {"error": error.what, "cure": error.cure, "exit_code": error.exit_code}
            self._out.out(json.dumps(document, ensure_ascii=False, sort_keys=True), highlight=False)
        self._err.print(f"error: {error}", style="red", markup=False)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """A bar on stderr with its rate; yields what to call after each of ``total`` steps, ``done`` of them before.

        Without a terminal, one line.
        """
        if self.quiet or not self._err.is_terminal:
            self.note(label)
            yield lambda: None
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Rate(),
        )  # fmt: skip
        with Progress(*columns, console=self._err, transient=True) as progress:
            task = progress.add_task(label, total=total, completed=done)
            yield lambda: progress.advance(task)


class _Rate(ProgressColumn):
    """Seconds a step, once one is done."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{1 / task.speed:.1f} s each", style="dim")


QUIET = Console(quiet=True)
"""For library use: nothing is printed."""
