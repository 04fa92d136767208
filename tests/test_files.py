"""Files that several processes use at a time: whole or not there, one writer, clear errors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests import manifest
from vlmexport import files
from vlmexport.artifact.bundle.contents import list_files, source_of
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST, staged
from vlmexport.artifact.bundle.summary import ParitySummary
from vlmexport.artifact.bundle.write import store_result, write_manifest
from vlmexport.calibrate.partial import save
from vlmexport.calibrate.statistics import Statistics
from vlmexport.errors import UsageError
from vlmexport.files import locked, whole
from vlmexport.source.checkpoint import Checkpoint

BUSY = UsageError("another one is running", "wait for it")


def at_once(*works: Callable[[], None]) -> None:
    """Run each in a thread, several times; what one raises is raised."""
    errors: list[BaseException] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            for _ in range(30):
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with whole(tmp_path / "x") as temporary:
        temporary.write_text("all")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "all")]
    with (tmp_path / "y").open("w"):
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_writers_of_one_number(tmp_path: Path) -> None:
    """Process ids are alike on two machines that share a home; here, in two threads."""
    at_once(*[lambda: save(Statistics(), tmp_path / "statistics.safetensors")] * 4)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]


@pytest.fixture
def bundle(tiny: Checkpoint, tmp_path: Path) -> Path:
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(b"weights")
    listed = list_files(folder, {})
    write_manifest(folder, manifest("onnx", source_of(tiny), files=listed))
    return folder


def test_two_checks_of_one_bundle(bundle: Path) -> None:
    manifest = read_manifest(bundle)

    def check(number: int) -> None:
        store_result(bundle, manifest, "parity.json", f'{{"number": {number}}}', _parity(number))

    def read() -> None:
        assert read_manifest(bundle).files == manifest.files

    at_once(lambda: check(1), lambda: check(2), lambda: check(3), read)
    found = read_manifest(bundle).parity
    assert found is not None
    number = found.samples
    assert (bundle / "parity.json").read_text() == f'{{"number": {number}}}'
    assert f"on {number} held-out samples" in (bundle / "README.md").read_text()
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "a.onnx", "parity.json", MANIFEST]


def _parity(number: int) -> ParitySummary:
    return ParitySummary(passed=True, samples=number, runtime="x", stages={}, notes=[])


def test_a_bundle_that_was_exported_again_meanwhile(bundle: Path) -> None:
    checked = read_manifest(bundle)
    write_manifest(bundle, checked.model_copy(update={"tools": {"torch": "another"}}))
    with pytest.raises(UsageError, match="was exported again while it was checked"):
        store_result(bundle, checked, "parity.json", "{}", _parity(20))
    assert read_manifest(bundle).tools == {"torch": "another"}
    assert not (bundle / "parity.json").exists()


_HOLDS = """
import sys, time
from pathlib import Path
from vlmexport.errors import UsageError
from vlmexport.files import locked
with locked(Path(sys.argv[1]), UsageError("", "")):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_of_another_process_and_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", _HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another one is running"), locked(path, BUSY):
            pytest.fail("it was not held")
        other.send_signal(signal.SIGTERM)
        other.wait()
    with locked(path, BUSY):
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_in_use_where_the_system_does_not_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, while a graph of the old bundle is mapped."""
    target = tmp_path / "b"
    with staged(target, False) as new:
        (new / MANIFEST).write_text("old")
    replace = os.replace

    def refused(source: Path, destination: Path) -> None:
        if Path(source) == target:
            raise PermissionError(13, "Access is denied")
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", refused)
    with (
        pytest.raises(UsageError, match=r"cannot become .* \(Access is denied\): end what uses"),
        staged(target, True) as new,
    ):
        (new / MANIFEST).write_text("new")
    assert (target / MANIFEST).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_another_process_was_faster_to_fetch_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmexport.console import QUIET
    from vlmexport.serve import client

    def archive(_: str, __: str, folder: Path) -> Path:
        return folder

    def unpacked(*_: object) -> bytes:
        return b'{"dependencies": {"onnxruntime-web": "1"}}'

    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        Path(target).mkdir()
        (Path(target) / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(client.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(client, "_pack", archive)
    monkeypatch.setattr(client, "_unpack", unpacked)
    monkeypatch.setattr(Path, "rename", late)
    client._fetch(tmp_path / "cached", QUIET)
    assert [path.name for path in tmp_path.rglob("*")] == ["cached", "theirs"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is Debian's")
def test_a_package_that_cannot_be_unpacked(tmp_path: Path) -> None:
    from vlmexport.errors import MissingDependency
    from vlmexport.runtime.ort.arm64.install import _unpack

    (tmp_path / "broken.deb").write_text("no package")
    with pytest.raises(MissingDependency, match="dpkg-deb failed while setting up arm64"):
        _unpack(tmp_path / "broken.deb", "./x", tmp_path / "x")
    control = tmp_path / "package" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    control.write_text("Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m\nDescription: d\n")
    (tmp_path / "package" / "file").write_text("held")
    subprocess.run(["dpkg-deb", "-b", tmp_path / "package", tmp_path / "p.deb"], check=True, capture_output=True)
    _unpack(tmp_path / "p.deb", "./file", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "held"
    with pytest.raises(MissingDependency, match=r"p\.deb holds no \./other"):
        _unpack(tmp_path / "p.deb", "./other", tmp_path / "other")
