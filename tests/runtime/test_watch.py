"""A worker that hangs, in its work or before it has read its request: ended after a deadline, with a clear error."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from vlmexport.errors import UsageError, VlmExportError
from vlmexport.runtime.ort.remote_sessions import own_worker
from vlmexport.workers.deadline import VARIABLE, deadline
from vlmexport.workers.process import WorkerProcess

_SLEEPS = "import time; from vlmexport.workers.wire import serve; serve(lambda request: time.sleep(600))"
_READS_NOTHING = "import time; time.sleep(600)"


def worker(code: str, seconds: float | None = None) -> WorkerProcess:
    return WorkerProcess("the worker", [sys.executable, "-c", code], os.environ, "try again", seconds)


@pytest.mark.parametrize("code", [_SLEEPS, _READS_NOTHING], ids=["works", "reads nothing"])
def test_a_worker_that_hangs(code: str) -> None:
    start = time.monotonic()
    with closing(worker(code, 0.4)) as hanging:
        with pytest.raises(VlmExportError, match=r"did not answer within 0.4 seconds while thinking, and was ended"):
            hanging.ask({"op": "x"}, "thinking", np.zeros(1 << 20))
        assert not hanging.alive
        with pytest.raises(VlmExportError, match="was closed before thinking again"):
            hanging.ask({"op": "x"}, "thinking again")
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signal stops a process on this system")
def test_a_real_worker_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2")
    with closing(own_worker()) as stopped:
        stopped.ask({"op": "start"}, "starting")
        time.sleep(3)  # a deadline is for requests, not for the time between them
        stopped.ask({"op": "peak"}, "telling its memory")
        os.kill(stopped.pid, signal.SIGSTOP)
        with pytest.raises(VlmExportError, match="within 2 seconds") as caught:
            stopped.ask({"op": "peak"}, "telling its memory")
    assert VARIABLE in caught.value.cure


def test_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert deadline() == 3600
    for given, seconds in (("", 3600), ("5", 5), ("0.5", 0.5), ("0", float("inf")), ("inf", float("inf"))):
        monkeypatch.setenv(VARIABLE, given)
        assert deadline() == seconds
    for given in ("-1", "soon", "nan"):
        monkeypatch.setenv(VARIABLE, given)
        with pytest.raises(UsageError, match=f"{VARIABLE}={given} is no number of seconds"):
            deadline()
