"""Statistics are made once: kept apart by what they are of, and continued where a run was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.calibrate.pictures import loaded_by, samples
from vlmexport.calibrate import Statistics, collect
from vlmexport.calibrate.cache import statistics
from vlmexport.calibrate.collect import SHARD
from vlmexport.checkpoint import Checkpoint
from vlmexport.console import QUIET
from vlmexport.model import load

TOWER = ("vision", "projector")
WEIGHTS = {"model.safetensors": "0"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VLMEXPORT_CACHE", str(folder))
    return folder


def run(checkpoint: Checkpoint, log: Path, components: tuple[str, ...], count: int = 3) -> Statistics:
    return statistics(checkpoint, WEIGHTS, samples(count, log), QUIET, components=components)


def test_all_components_serve_for_some(tiny: Checkpoint, tmp_path: Path) -> None:
    whole = run(tiny, tmp_path / "log", (*TOWER, "language"))
    part = run(tiny, tmp_path / "log", TOWER)
    assert len(loaded_by(tmp_path / "log")) == 3
    assert part.sha256() == whole.only(TOWER).sha256() != whole.sha256()


def test_some_components_do_not_serve_for_all(tiny: Checkpoint, tmp_path: Path) -> None:
    part = run(tiny, tmp_path / "log", TOWER)
    whole = run(tiny, tmp_path / "log", (*TOWER, "language"))
    assert len(loaded_by(tmp_path / "log")) == 6
    assert part.sha256() == whole.only(TOWER).sha256()


def test_damaged_statistics_are_made_anew(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    first = run(tiny, tmp_path / "log", TOWER)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert run(tiny, tmp_path / "log", TOWER).sha256() == first.sha256()


SCRIPT = """
import sys
from pathlib import Path
from tests.calibrate.pictures import samples
from vlmexport.calibrate.cache import statistics
from vlmexport.checkpoint import open_checkpoint
from vlmexport.console import QUIET
chosen = samples({count}, Path(sys.argv[2]), pause=0.1)
statistics(open_checkpoint(Path(sys.argv[1])), {weights}, chosen, QUIET, components={components})
"""


@pytest.mark.slow
def test_a_killed_run_is_continued(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    count, killed, here = 2 * SHARD + 1, tmp_path / "killed", tmp_path / "here"
    script = SCRIPT.format(count=count, weights=WEIGHTS, components=TOWER)
    process = subprocess.Popen([sys.executable, "-c", script, str(tiny.path), str(killed)])
    while not list(cache.glob("*.partial.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert SHARD <= len(loaded_by(killed)) < count
    found = run(tiny, here, TOWER, count)
    assert len(loaded_by(here)) <= count - SHARD
    assert found.sha256() == collect(load(tiny, components=TOWER), tiny.tokenizer, samples(count, here)).sha256()
    assert [path.name for path in cache.iterdir() if "partial" in path.name] == []


def test_a_damaged_partial_file_is_no_obstacle(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    first = run(tiny, tmp_path / "log", TOWER)
    (path,) = cache.iterdir()
    path.rename(path.with_suffix(".partial.safetensors"))
    path.with_suffix(".partial.safetensors").write_bytes(b"damaged")
    assert run(tiny, tmp_path / "log", TOWER).sha256() == first.sha256()
    assert len(loaded_by(tmp_path / "log")) == 6
