"""As many threads as the machine, the affinity, the container and the user allow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vlmexport.artifact.onnx.session import open_session
from vlmexport.threads import cores, operator_threads

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="reads what Linux shows")
MANY = 16


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight physical cores of two hyperthreads each, all allowed: the numbers of siblings are eight apart."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(MANY)))
    for number in range(MANY):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 8},{number % 8 + 8}\n")
    return tmp_path


def group(root: Path, line: str, **files: str) -> None:
    """A line of ``/proc/self/cgroup``; files, their folder and name with ``__`` for a slash and ``_dot_`` for a dot."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    with (root / "proc/self/cgroup").open("a") as file:
        file.write(f"{line}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_physical_cores(machine: Path) -> None:
    assert (cores(machine), operator_threads(machine)) == (MANY, 8)


def test_of_the_affinity(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 8, 1})
    assert (cores(machine), operator_threads(machine)) == (3, 2)


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("4,2", 4), ("12", 12), ("", 8), ("0", 8), ("many", 8)])
def test_omp_num_threads(given: str, threads: int, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert operator_threads(machine) == threads


@pytest.mark.parametrize(
    ("limit", "found"),
    [("max 100000", (MANY, 8)), ("200000 100000", (2, 2)), ("150000 100000", (2, 2)), ("1000 100000", (1, 1)),
     ("1200000 100000", (12, 8)), ("nonsense", (MANY, 8))],
)  # fmt: skip
def test_quota_of_version_2(limit: str, found: tuple[int, int], machine: Path) -> None:
    group(machine, "0::/user/job", user__job__cpu_dot_max="max 100000", user__cpu_dot_max=limit)
    assert (cores(machine), operator_threads(machine)) == found


@pytest.mark.parametrize(("quota", "found"), [("-1", (MANY, 8)), ("300000", (3, 3)), ("50000", (1, 1))])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quota_of_version_1(mount: str, quota: str, found: tuple[int, int], machine: Path) -> None:
    """As a container sees it: the path is the host's, the mount is the group itself."""
    group(machine, "5:memory:/docker/1")
    group(machine, "4:cpu,cpuacct:/docker/1",
          **{f"{mount}__cpu_dot_cfs_quota_us": quota, f"{mount}__cpu_dot_cfs_period_us": "100000"})  # fmt: skip
    assert (cores(machine), operator_threads(machine)) == found


def test_a_machine_that_shows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= operator_threads(tmp_path) <= cores(tmp_path) == len(os.sched_getaffinity(0))


def test_a_real_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    script = (
        f"import os; os.sched_setaffinity(0, {{{one}}})\n"
        "from vlmexport.threads import *; print(cores(), operator_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.slow
def test_torch_knows_no_quota(tiny_folder: Path) -> None:
    """It takes what the machine has; the float model takes what the process may use."""
    one = min(os.sched_getaffinity(0))
    script = (
        f"import os, torch; torch.set_num_threads(7); os.sched_setaffinity(0, {{{one}}})\n"
        "from pathlib import Path; from vlmexport.source.checkpoint import open_checkpoint\n"
        "from vlmexport.model import load\n"
        f"load(open_checkpoint(Path({str(tiny_folder)!r})), components=('projector',)); print(torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_sessions_ask_when_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a module is imported, so that a program can decide."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "graph.onnx")
    for given in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        session = open_session(tmp_path / "graph.onnx")
        assert session.get_session_options().intra_op_num_threads == int(given)
        assert session.run(None, {"x": np.ones(1, np.float32)})[0].tolist() == [-1]
