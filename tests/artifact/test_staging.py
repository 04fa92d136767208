"""Whole or not at all: what an error, a full disk or a kill leaves, and what is never touched."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from vlmexport.artifact.bundle import staging
from vlmexport.artifact.bundle.staging import MANIFEST, refuse_destination, staged
from vlmexport.errors import UsageError


def make(folder: Path, text: str, force: bool = False) -> None:
    with staged(folder, force) as new:
        (new / MANIFEST).write_text(text)


def held(folder: Path) -> str:
    return (folder / MANIFEST).read_text()


def test_takes_its_place(tmp_path: Path) -> None:
    make(tmp_path / "deep" / "b", "one")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]
    with pytest.raises(UsageError, match="--force"):
        make(tmp_path / "deep" / "b", "two")
    make(tmp_path / "deep" / "b", "two", force=True)
    assert held(tmp_path / "deep" / "b") == "two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    for expected in ([], ["b"]):
        with pytest.raises(type(error)), staged(tmp_path / "b", True) as new:
            (new / "half").write_text("x")
            raise error
        assert [path.name for path in tmp_path.iterdir()] == expected
        make(tmp_path / "b", "one", force=True)
    assert held(tmp_path / "b") == "one"


def killed(folder: Path) -> Path:
    """What a killed run leaves: our mark, a half bundle."""
    root = folder.with_name(f".{folder.name}.partial")
    (root / "new").mkdir(parents=True)
    (root / ".vlmexport").touch()
    (root / "new" / "half").write_text("x")
    return root


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    killed(tmp_path / "b")
    refuse_destination(tmp_path / "b", False)
    assert list(tmp_path.iterdir()) == []
    killed(tmp_path / "b")
    make(tmp_path / "b", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_interrupted_swap_is_undone(tmp_path: Path) -> None:
    make(tmp_path / "b", "old")
    root = killed(tmp_path / "b")
    os.replace(tmp_path / "b", root / "old")
    with pytest.raises(UsageError, match="exists already"):
        refuse_destination(tmp_path / "b", False)
    assert held(tmp_path / "b") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_error_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "b", "old")
    replace, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(staging.os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", "new", force=True)
    assert held(tmp_path / "b") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_users_folder_is_left_alone(tmp_path: Path) -> None:
    for name in (".b.partial", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"not vlmexport's"):
            make(tmp_path / "b", "new", force=True)
        assert (folder / "thesis.txt").read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 1
        shutil.rmtree(folder)
    (tmp_path / "b").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        make(tmp_path / "b", "new", force=True)


def test_side_by_side(tmp_path: Path) -> None:
    with staged(tmp_path / "a", False) as first, staged(tmp_path / "b", False) as second:
        (first / MANIFEST).write_text("a")
        (second / MANIFEST).write_text("b")
        with pytest.raises(UsageError, match=r"another export to .*a is running"):
            make(tmp_path / "a", "other")
        with pytest.raises(UsageError, match="is running"):
            refuse_destination(tmp_path / "a", False)
    assert (held(tmp_path / "a"), held(tmp_path / "b")) == ("a", "b")


def test_a_disk_too_small_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10**10, 0, 5 * 10**8)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UsageError, match="needs 1,001 MB, 500 MB are free"), staged(tmp_path / "b", False, 10**9):
        pytest.fail("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no space left for .*b"), staged(tmp_path / "b", False) as new:
        (new / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
