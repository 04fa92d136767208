"""The process that works for a runtime, seen from outside: requests, replies, and how it died."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vlmexport import errors
from vlmexport.errors import VlmExportError
from vlmexport.workers.deadline import VARIABLE, Watch, deadline
from vlmexport.workers.wire import Array, Message, receive, send


def own_python(module: str) -> list[str]:
    """The command of a worker in this interpreter, which finds modules where this process does.

    ``-m`` alone would look for them in the current folder first, which may be a stranger's bundle.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    return [sys.executable, "-P", "-c", code]


class WorkerProcess:
    """A process that answers ``wire`` messages (``wire.serve``).

    Args:
        name: of what it runs, as error messages call it.
        cure: what helps where it dies.
        seconds: that an answer may take; ``deadline()`` where it is None. Then the process is ended.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        cure: str,
        seconds: float | None = None,
    ) -> None:
        self.name, self._cure = name, cure
        self._hanging = cure if seconds is not None else f"give it more seconds by {VARIABLE}, or try again"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
        )
        self.pid = self._process.pid
        self._watch = Watch(self._process, deadline() if seconds is None else seconds)
        self._finalizer = weakref.finalize(self, _end, self._process, self._log, self._watch)

    def ask(self, body: dict[str, Any], doing: str, *arrays: Array) -> Message:
        """One request and its reply.

        Raises:
            VlmExportError: what the worker reports, or that it died or did not answer, and what it was doing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._finalizer.alive:
            raise VlmExportError(f"{self.name} was closed before {doing}", "open the bundle again")
        try:
            with self._watch:
                send(self._process.stdin, Message(body, list(arrays)))
                reply = receive(self._process.stdout)
        except (EOFError, OSError) as error:
            raise self._died(doing) from error
        if "error" in reply.body:
            kind = getattr(errors, reply.body["kind"])
            raise kind(reply.body["error"], reply.body["cure"])
        return reply

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._finalizer.alive and self._process.poll() is None

    def peak_bytes(self) -> int | None:
        """The most memory that it has held (``memory.peak_bytes``)."""
        peak: int | None = self.ask({"op": "peak"}, "telling its memory").body["bytes"]
        return peak

    def close(self) -> None:
        """End the process; again is harmless."""
        self._finalizer()

    def last_words(self, lines: list[str]) -> str:
        """The line of what it wrote to stderr that tells why it died."""
        return lines[-1].strip() if lines else ""

    def _died(self, doing: str) -> VlmExportError:
        status = self._process.wait()
        if self._watch.expired:
            self.close()
            return VlmExportError(
                f"{self.name} did not answer within {self._watch.seconds:g} seconds while {doing}, and was ended",
                self._hanging,
            )
        self._log.seek(0)
        last = self.last_words(self._log.read().decode(errors="replace").strip().splitlines())
        self.close()
        reason = f"signal {-status}" if status < 0 else f"exit code {status}"
        return VlmExportError(f"{self.name} died while {doing} ({reason}{': ' + last if last else ''})", self._cure)


def _end(process: subprocess.Popen[bytes], log: Any, watch: Watch) -> None:
    watch.close()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
