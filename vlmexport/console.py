"""The one output sink. Results go to stdout; progress, notes and errors to stderr.

No colour and no bar without a terminal; ``NO_COLOR`` is honoured (rich does both).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from vlmexport.errors import VlmExportError


class Advance(Protocol):
    """Told of what was done: a step, or a number of bytes."""

    def __call__(self, amount: int = 1, /) -> None:
        """``amount`` more is done."""


def no_advance(amount: int = 1, /) -> None:
    """For work that nobody watches."""


_COLUMNS: dict[str, Callable[[], list[ProgressColumn]]] = {
    "steps": lambda: [MofNCompleteColumn(), TimeElapsedColumn(), _Rate()],
    "bytes": lambda: [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()],
}


Unit = Literal["steps", "bytes"]


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
    def progress(self, label: str, total: int, unit: Unit = "steps", done: int = 0) -> Iterator[Advance]:
        """A bar on stderr with its rate; yields what to call after each of ``total`` steps, or with the bytes that
        are done; ``done`` of them before. Without a terminal, one line."""
        with self.bars({label: total}, unit) as advance:
            advance[label](done)
            yield advance[label]

    @contextmanager
    def bars(self, totals: Mapping[str, int], unit: Unit = "bytes") -> Iterator[dict[str, Advance]]:
        """The same for several things at a time: label → total, and label → what to call, from any thread."""
        if self.quiet or not self._err.is_terminal:
            for label, total in totals.items():
                self.note(label if unit == "steps" else f"{label}, {decimal(total)}")
            yield dict.fromkeys(totals, no_advance)
            return
        columns = [TextColumn("{task.description}"), BarColumn(), *_COLUMNS[unit]()]
        with Progress(*columns, console=self._err, transient=True) as progress:
            tasks = {label: progress.add_task(label, total=total) for label, total in totals.items()}
            yield {label: _advancing(progress, task) for label, task in tasks.items()}


def _advancing(progress: Progress, task: TaskID) -> Advance:
    return lambda amount=1: progress.advance(task, amount)


class _Rate(ProgressColumn):
    """Seconds a step, once one is done."""

    def render(self, task: Task) -> Text:
        return Text("" if not task.speed else f"{1 / task.speed:.1f} s each", style="dim")


QUIET = Console(quiet=True)
"""For library use: nothing is printed."""
