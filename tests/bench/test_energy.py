"""RAPL's counters, as the kernel lays them out (Documentation/power/powercap)."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmexport.bench.energy import open_meter


def package(folder: Path, name: str, joules: float, top: float = 1000.0) -> Path:
    counter = folder / name
    counter.mkdir()
    (counter / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (counter / "max_energy_range_uj").write_text(f"{int(top * 1e6)}\n")
    return counter / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 5), package(tmp_path, "intel-rapl:1", 7)
    cores = package(tmp_path, "intel-rapl:0:0", 1)
    meter = open_meter(tmp_path)
    assert meter is not None
    first.write_text("6500000\n")
    second.write_text("9000000\n")
    cores.write_text("2000000\n")
    assert meter() == pytest.approx(3.5)
    assert meter() == 0


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    counter = package(tmp_path, "intel-rapl:0", 990)
    meter = open_meter(tmp_path)
    assert meter is not None
    counter.write_text("4000000\n")
    assert meter() == pytest.approx(14)


def test_where_there_are_none(tmp_path: Path) -> None:
    assert open_meter(tmp_path) is None
    assert open_meter(tmp_path / "missing") is None


def test_one_that_cannot_be_read(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 1).unlink()
    assert open_meter(tmp_path) is None
