"""Calibration on several processes gives the file that one gives, also when one of them is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.calibrate.pictures import loaded_by, samples
from vlmexport.calibrate import collect
from vlmexport.calibrate.cache import statistics
from vlmexport.calibrate.collect import SHARD
from vlmexport.console import QUIET
from vlmexport.errors import MissingDependency, UsageError
from vlmexport.model import load
from vlmexport.source.checkpoint import Checkpoint

COUNT = 2 * SHARD


def kill_one(log: Path, killed: list[int]) -> None:
    """Kill the first process that has loaded three samples, in the middle of its shard."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        loads = loaded_by(log)
        for pid in set(loads) - {os.getpid()}:
            if loads.count(pid) == 3:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_two_processes_one_of_them_killed(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    log, killed = tmp_path / "log", list[int]()
    killer = threading.Thread(target=kill_one, args=(log, killed))
    killer.start()
    spread = statistics(tiny, samples(COUNT, log, pause=0.1), QUIET, dask="local:2")
    killer.join()
    loads = loaded_by(log)
    assert killed
    assert loads.count(killed[0]) < SHARD
    assert len(loads) > COUNT  # the killed one's shard was done again
    assert os.getpid() not in loads
    single = collect(load(tiny), tiny.prompts, samples(COUNT, tmp_path / "single"))
    assert spread.samples == single.samples
    for name, layer in single.layers.items():
        other = spread.layers[name]
        assert (other.count_image, other.count_text) == (layer.count_image, layer.count_text)
        assert (other.minimum, other.maximum) == pytest.approx((layer.minimum, layer.maximum), rel=1e-4)
        assert other.sum_sq_image == pytest.approx(layer.sum_sq_image, rel=1e-4)
        assert abs(other.histogram.counts - layer.histogram.counts).sum() <= 1e-3 * layer.histogram.counts.sum()


def test_without_dask(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"pip install 'vlmexport\[dask\]'") as caught:
        statistics(tiny, samples(1, tmp_path / "log"), QUIET, dask="local:2")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("where", ["local:", "local:0", "local:two"])
def test_no_number_of_processes(where: str, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="names no number of processes"):
        statistics(tiny, samples(1, tmp_path / "log"), QUIET, dask=where)
