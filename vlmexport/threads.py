"""How many threads: the cores that this process may use, and how many of them one operator takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"
_GROUPS = "sys/fs/cgroup"


def cores(root: Path = _ROOT) -> int:
    """Logical cores that this process may use: those of its affinity, and no more than its cgroup's quota pays for.

    Args:
        root: of the file system that holds ``/proc`` and ``/sys``.
    """
    return _paid_for(len(_affinity()), root)


def operator_threads(root: Path = _ROOT) -> int:
    """Threads of one operator in a runtime: one for each physical core that this process may use, because hyperthreads
    share the core's multipliers.

    ``OMP_NUM_THREADS`` decides instead where it is set, as it does in torch: where processes share the cores
    (CI, tests), threads that wait for each other take most of the time.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdecimal() and int(given):
        return int(given)
    return _paid_for(_physical(_affinity(), root), root)


def _affinity() -> set[int]:
    """Numbers of the logical cores that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical(logical: set[int], root: Path) -> int:
    """Physical cores behind logical ones: hyperthreads of a core name the same siblings."""
    try:
        places = (root / _CPUS / f"cpu{number}" / "topology" / "thread_siblings_list" for number in logical)
        return len({place.read_text(encoding="ascii") for place in places})
    except OSError:  # no Linux, or one that does not show them
        try:
            import psutil
        except ModuleNotFoundError:  # the emulated Python of ``check --on arm64`` has NumPy and onnxruntime alone
            return len(logical)
        return min(psutil.cpu_count(logical=False) or len(logical), len(logical))


def _paid_for(count: int, root: Path) -> int:
    return max(1, min([count, *(ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that this process's cgroups, and those around them, may take; none where there is no
    limit. Version 2 has one file, version 1 two in a hierarchy of its own."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (group.split(":", 2) for group in groups if group.count(":") >= 2):
        if not controllers:
            for folder in _upwards(root / _GROUPS, path):
                with suppress(OSError, ValueError):
                    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
                    yield int(quota) / int(period)
        elif "cpu" in controllers.split(","):
            for folder in (*_upwards(root / _GROUPS / controllers, path), *_upwards(root / _GROUPS / "cpu", path)):
                with suppress(OSError, ValueError):
                    quota, period = (
                        (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period")
                    )
                    if int(quota) > 0:
                        yield int(quota) / int(period)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group, and those around it. In a container the mount often is the group itself, and its path,
    as the host says it, does not exist there."""
    inside = PurePosixPath(path).relative_to("/")
    yield from (mount / part for part in (inside, *inside.parents))
