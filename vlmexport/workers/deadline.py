"""A deadline for what another process does: one that hangs is ended, so that nobody waits for it for ever."""

from __future__ import annotations

import os
import subprocess
from math import inf, isnan
from threading import Event, Thread
from time import monotonic

from vlmexport.errors import UsageError

VARIABLE = "VLMEXPORT_WORKER_SECONDS"
_SECONDS = 3600.0
"""The longest that one request has taken, a prompt on an emulated core, was some minutes."""


def deadline() -> float:
    """Seconds that a worker may take for one request: ``VLMEXPORT_WORKER_SECONDS`` (0: no limit), else an hour.

    Raises:
        UsageError: the variable is no such number.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return _SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1
    if seconds < 0 or isnan(seconds):
        raise UsageError(f"{VARIABLE}={given} is no number of seconds", "leave it out, or set it to 0 for no limit")
    return seconds or inf


class Watch:
    """``with watch:`` while a process works; it is ended where that takes longer, at the latest a quarter late.

    Attributes:
        expired: it was.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.seconds, self.expired = seconds, False
        self._process, self._due, self._closed = process, inf, Event()
        if seconds < inf:
            Thread(target=self._run, name=f"watch of {process.pid}", daemon=True).start()

    def __enter__(self) -> None:
        self._due = monotonic() + self.seconds

    def __exit__(self, *_: object) -> None:
        self._due = inf

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self.seconds / 4):
            if monotonic() > self._due:
                self.expired = True
                self._process.kill()
                return
