"""The process that holds llama.cpp, seen from outside: requests, replies, and how it died."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from typing import Any

from vlmexport import errors
from vlmexport.errors import VlmExportError
from vlmexport.runtime.llamacpp_wire import Array, Message, receive, send


class Process:
    """The worker, seen from outside."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        if "LLAMA_CPP_LIB_PATH" in environment:
            environment.setdefault("MTMD_CPP_LIB", environment["LLAMA_CPP_LIB_PATH"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vlmexport.runtime.llamacpp_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, _end, self._process, self._log)

    def ask(self, body: dict[str, Any], doing: str, *arrays: Array) -> Message:
        """One request and its reply.

        Raises:
            VlmExportError: what the worker reports, or that it died and what it was doing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._finalizer.alive:
            raise VlmExportError(f"llama.cpp was closed before {doing}", "open the bundle again")
        try:
            send(self._process.stdin, Message(body, list(arrays)))
            reply = receive(self._process.stdout)
        except (EOFError, OSError) as error:
            raise self._died(doing) from error
        if "error" in reply.body:
            kind = getattr(errors, reply.body["kind"])
            raise kind(reply.body["error"], reply.body["cure"])
        return reply

    def close(self) -> None:
        """End the process; again is harmless."""
        self._finalizer()

    def _died(self, doing: str) -> VlmExportError:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if "GGML_ASSERT" in line), lines[-1] if lines else "")
        last = last.rpartition("llama.cpp/")[2]  # an assertion names the folder it was compiled in
        self.close()
        reason = f"signal {-status}" if status < 0 else f"exit code {status}"
        return VlmExportError(
            f"llama.cpp died while {doing} ({reason}{': ' + last.strip() if last else ''})",
            "nothing else was harmed; try again with more memory, or use an ONNX bundle",
        )


def _end(process: subprocess.Popen[bytes], log: Any) -> None:
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
