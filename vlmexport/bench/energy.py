"""Energy of the processor's packages from RAPL's counters, where the operating system shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_MICRO = 1e-6


def open_meter(folder: Path = POWERCAP) -> Callable[[], float] | None:
    """What to call before and after: each call returns the joules since the call before.

    Whole packages are counted (``intel-rapl:0``, …, AMD's too), with whatever else runs on them. Counters that
    wrap do so once at most between two calls: at 100 W every 40 minutes or so.

    Returns:
        None where there are no counters, or only root may read them.
    """
    packages = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
    try:
        counters = {package: _read(package / "energy_uj") for package in packages}
        ranges = {package: _read(package / "max_energy_range_uj") for package in packages}
    except (OSError, ValueError):
        return None
    if not counters:
        return None

    def joules() -> float:
        total = 0
        for package, before in counters.items():
            now = counters[package] = _read(package / "energy_uj")
            total += now - before if now >= before else now - before + ranges[package]
        return total * _MICRO

    return joules


def _read(path: Path) -> int:
    return int(path.read_text())
