"""The cache: where it lies, that nothing depends on it, what leaves it, and that processes share it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import vlmexport
from tests.test_cli import assert_one_line_error
from vlmexport import cache
from vlmexport.cache import Limits, cache_folder, entries, keep, prune, used

DAY = 86_400
NOWHERE = Path("/proc/vlmexport")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(path: Path, size: int = 10, days: float = 0.0) -> Path:
    """A file that was last used so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - days * DAY
    os.utime(path, (then, then))
    return path


def test_it_lies_where_the_system_has_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLMEXPORT_CACHE", raising=False)
    if os.name == "posix" and os.uname().sysname == "Linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cache_folder() == tmp_path / "vlmexport"
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLMEXPORT_CACHE", raising=False)
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: Path("~/.cache/vlmexport"))
    monkeypatch.chdir(tmp_path)
    assert not keep(cache_folder() / "libmtmd-1.json", lambda path: path.write_text("1"))
    assert entries() == []
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for where in (NOWHERE, make(tmp_path / "file")):
        monkeypatch.setenv("VLMEXPORT_CACHE", str(where))
        monkeypatch.setattr(cache, "_said", set())
        caplog.clear()
        with caplog.at_level(logging.WARNING, "vlmexport"):
            for name in ("libmtmd-1.json", "traces/1"):
                assert not keep(where / name, lambda path: path.write_text("1"))
        (record,) = caplog.records
        assert str(where) in record.getMessage()


@pytest.mark.slow
def test_commands_go_on_without_it(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(NOWHERE))
    for flags, times in (((), 1), (("-q",), 0)):
        monkeypatch.setattr(cache, "_said", set())
        done = vlmexport("calibrate", tiny_folder, "--samples", "9", "-o", tmp_path / f"{times}.safetensors", *flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(f"the cache {NOWHERE} cannot be written") == times
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_what_is_old_leaves_and_what_is_too_much(folder: Path) -> None:
    old, young = make(folder / "statistics-1.safetensors", days=91), make(folder / "traces/2", days=89)
    assert [entry.path for entry in prune(Limits(90, 1000))] == [old]
    assert young.exists()
    first, last = make(folder / "sensitivity-3.safetensors", 600, 3), make(folder / "libmtmd-4.json", 600, 2)
    assert [entry.path for entry in prune(Limits(90, 1000))] == [young, first], "least recently used first"
    assert last.exists()


def test_what_is_used_stays(folder: Path) -> None:
    first, second = make(folder / "traces/1", 600, 3), make(folder / "traces/2", 600, 2)
    used(first)
    assert [entry.path for entry in prune(Limits(90, 1000))] == [second]


def test_keeping_prunes_but_nothing_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE_SIZE", "1KB")
    fresh, old = make(folder / "traces/1", 900), make(folder / "traces/2", 900, days=1)
    assert keep(folder / "libmtmd-3.json", lambda path: path.write_bytes(b"x" * 900))
    assert fresh.exists()
    assert not old.exists()


def test_what_is_not_ours_or_was_installed_stays(folder: Path) -> None:
    mine = make(folder / "photos" / "holiday.jpg", days=9999)
    installed = make(folder / "arm64-onnxruntime-1.31.1" / "qemu-aarch64", days=9999)
    os.utime(installed.parent, (0, 0))
    unfinished = make(folder / "traces" / ".1.abc.partial", days=2)
    writing = make(folder / "traces" / ".2.abc.partial", days=0.5)
    assert [entry.path for entry in prune(Limits(90, 1000))] == [unfinished]
    assert all(path.exists() for path in (mine, installed, writing))
    done = vlmexport("cache", "prune", "--all", "--json")
    assert {one["kind"] for one in json.loads(done.stdout)["removed"]} == {"onnxruntime for arm64", "unfinished"}
    assert mine.exists()
    assert not installed.parent.exists()


SHARING = """
import sys
from pathlib import Path
from vlmexport.cache import keep
path, number = Path(sys.argv[1]), sys.argv[2]
for _ in range(40):
    assert keep(path, lambda temporary: temporary.write_text(number * 10_000))
    text = path.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1, "half of one, or of two"
"""


def test_processes_share_it(folder: Path) -> None:
    path = folder / "libmtmd-1.json"
    running = [subprocess.Popen([sys.executable, "-c", SHARING, str(path), str(number)]) for number in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert list(folder.iterdir()) == [path]


def test_shown_and_pruned(folder: Path) -> None:
    for number in range(3):
        make(folder / f"traces/{number}", 1000, days=number)
    shown = vlmexport("cache")
    assert shown.returncode == 0
    assert all(text in shown.stdout for text in (str(folder), "traced graphs", "3.0 kB", "today", "90 days"))
    assert len(json.loads(vlmexport("cache", "--json").stdout)["entries"]) == 3
    done = vlmexport("cache", "prune", "--days", "1.5", "--json")
    document = json.loads(done.stdout)
    assert ([Path(one["path"]).name for one in document["removed"]], len(document["entries"])) == (["2"], 2)
    done = vlmexport("cache", "prune", "--size", "1.5kB")
    assert done.stdout == f"1 removed (1.0 kB), 1 left (1.0 kB) in {folder}\n"
    assert [entry.path.name for entry in entries()] == ["0"]


def test_an_empty_one(folder: Path) -> None:
    for arguments in (("cache",), ("cache", "prune"), ("cache", "prune", "--all")):
        assert vlmexport(*arguments).returncode == 0
    assert not folder.exists()


def test_limits_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line_error(vlmexport("cache", "prune", "--size", "much"), 2, "'much' is no size", "5GB")
    monkeypatch.setenv("VLMEXPORT_CACHE_DAYS", "soon")
    assert_one_line_error(vlmexport("recipes"), 2, "VLMEXPORT_CACHE_DAYS is 'soon'", "90")
