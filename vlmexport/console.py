"""The one output sink. Results go to stdout; progress, notes, warnings and errors to stderr.

No colour and no bar without a terminal; ``NO_COLOR`` is honoured (rich does both). No text is markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from threading import Event, Thread
from time import monotonic
from typing import Any, ClassVar, Literal, Protocol

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
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
from rich.segment import Segment
from rich.text import Text

from vlmexport.errors import VlmExportError
from vlmexport.text import one_line, plain


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

HEARTBEAT = 30.0
"""Seconds between lines about what takes long, where there is no terminal."""


class Screen(RichConsole):
    """rich's console, for which no text is markup: not ``[bold]``, not ``:smile:``, not an escape sequence. What the
    stream's encoding cannot write is replaced."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **settings)

    @property
    def encoding(self) -> str:
        """Of the stream that is written to, which may be redirected at any time."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as it is."""
        return super().render_str(self._shown(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The same for text that comes with a style. rich's own control sequences are segments of another kind."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._shown(segment.text), segment.style)

    def _shown(self, text: str) -> str:
        return plain(text).encode(self.encoding, "replace").decode(self.encoding)


class Console:
    """Human, ``--json`` or ``--quiet``.

    Args:
        as_json: results as one JSON document on stdout, nothing else there; no progress.
        quiet: no progress and no notes.
    """

    answered: ClassVar[bool] = False
    """Whether this command has written its JSON document; an error that follows writes no second one."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._out = Screen()
        self._err = Screen(stderr=True)

    def result(self, human: RenderableType, data: Any) -> None:
        """A command's result: for people, or the same facts as JSON."""
        if self.as_json:
            self._document(data)
        else:
            self._out.print(human, soft_wrap=not self._out.is_terminal)  # a terminal breaks lines within words

    def stream(self, text: str) -> None:
        """A piece of a result that grows (an answer being decoded)."""
        if not self.as_json:
            self._out.out(text, end="", highlight=False)

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""
        if not self.quiet:
            self._err.print(one_line(text), style="dim")

    def warn(self, text: str) -> None:
        """Something that is likely a mistake; it is said with ``--quiet``, too."""
        self._err.print(f"warning: {one_line(text)}", style="yellow")

    def error(self, error: VlmExportError) -> None:
        """One clear line: what, where, what to do."""
        if self.as_json and not Console.answered:
            self._document({"error": error.what, "cure": error.cure, "exit_code": error.exit_code})
        self._err.print(f"error: {one_line(str(error))}", style="red")

    def _document(self, data: Any) -> None:
        Console.answered = True
        sys.stdout.write(_json(data, sys.stdout.encoding or "utf-8") + "\n")
        sys.stdout.flush()

    @contextmanager
    def progress(self, label: str, total: int, unit: Unit = "steps", done: int = 0) -> Iterator[Advance]:
        """A bar on stderr with its rate; yields what to call after each of ``total`` steps, or with the bytes that
        are done; ``done`` of them before. Without a terminal, a line, and another every half a minute."""
        with self.bars({label: total}, unit, done) as advance:
            yield advance[label]

    @contextmanager
    def bars(self, totals: Mapping[str, int], unit: Unit = "bytes", done: int = 0) -> Iterator[dict[str, Advance]]:
        """The same for several things at a time: label → total, and label → what to call, from any thread."""
        if self.quiet or self.as_json:
            yield dict.fromkeys(totals, no_advance)
            return
        if not self._err.is_terminal:
            with _Heartbeat(self, totals, unit, done) as advance:
                yield advance
            return
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), *_COLUMNS[unit]()]
        with Progress(*columns, console=self._err, transient=True) as progress:
            tasks = {
                label: progress.add_task(label, total=total, completed=done, before=done)
                for label, total in totals.items()
            }
            yield {label: _advancing(progress, task) for label, task in tasks.items()}


class _Heartbeat:
    """What is under way where there is no terminal: says every half a minute how far it is, until it is done."""

    def __init__(self, console: Console, totals: Mapping[str, int], unit: Unit, done: int) -> None:
        self._console, self._totals, self._unit = console, totals, unit
        self._done, self._start, self._over = dict.fromkeys(totals, done), monotonic(), Event()

    def __enter__(self) -> dict[str, Advance]:
        for label, total in self._totals.items():
            self._console.note(label if self._unit == "steps" else f"{label}, {decimal(total)}")
        Thread(target=self._beat, daemon=True).start()
        return {label: partial(self._advance, label) for label in self._totals}

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _advance(self, label: str, amount: int = 1, /) -> None:
        self._done[label] += amount

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            for label, total in self._totals.items():
                if self._done[label] < total:
                    self._console.note(f"{label}: {self._far(label, total)}")

    def _far(self, label: str, total: int) -> str:
        done, whole = (str(n) if self._unit == "steps" else decimal(n) for n in (self._done[label], total))
        return f"{done} of {whole}, after {monotonic() - self._start:.0f} s"


def _json(data: Any, encoding: str) -> str:
    """Readable where the stream can write it, else in ASCII (names that are no UTF-8 have half characters)."""
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, sort_keys=True)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(_finite(data), indent=2, sort_keys=True)
    return text


def _finite(data: Any) -> Any:
    """JSON knows no infinity and no NaN: they become null."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not isfinite(data) else data


def _advancing(progress: Progress, task: TaskID) -> Advance:
    return lambda amount=1: progress.advance(task, amount)


class _Rate(ProgressColumn):
    """Seconds a step, once one is done: the mean, for steps may end many at a time. Those of an earlier run do not
    count."""

    def render(self, task: Task) -> Text:
        steps = task.completed - task.fields["before"]
        elapsed = task.elapsed if steps else None
        return Text("" if elapsed is None else f"{elapsed / steps:.1f} s each", style="dim")


QUIET = Console(quiet=True)
"""For library use: nothing is printed."""
