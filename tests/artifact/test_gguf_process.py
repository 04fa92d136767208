"""GGUF exports as processes: no torch, a full disk, Ctrl-C and kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smolvlm import write_model
from vlmexport.artifact.bundle.contents import verify
from vlmexport.artifact.bundle.manifest import read_manifest

pytestmark = pytest.mark.slow

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
SLOW = """
import sys, time
from vlmexport.artifact.gguf import rows
from vlmexport.cli import main
encode = rows.Block.encode
def slowly(block, buffers):
    time.sleep(0.5)
    return encode(block, buffers)
rows.Block.encode = slowly
main()
"""
LIMITED = """
import resource, signal
from vlmexport.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
main()
"""
TORCHLESS = """
import sys
from vlmexport.cli import main
try:
    main()
finally:
    print("imported:", [name for name in ("torch", "transformers", "onnx", "onnxruntime") if name in sys.modules])
"""


def command(script: str, model: Path, folder: Path) -> list[str]:
    options = ["--type", "q4_k_m", "--imatrix", "none", "--output", str(folder)]
    return [sys.executable, "-c", script, "gguf", str(model), *options]


def run(script: str, model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, model, folder), capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("tiles", [False, True])
def test_without_calibration_torch_is_not_imported(tiles: bool, tiny_folder: Path, tmp_path: Path) -> None:
    if tiles:
        write_model(tmp_path / "model", "smolvlm")
    done = run(TORCHLESS, tmp_path / "model" if tiles else tiny_folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout


@posix
def test_a_file_that_may_not_grow(tiny_folder: Path, tmp_path: Path) -> None:
    done = run(LIMITED, tiny_folder, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no space left for")
    assert list(tmp_path.iterdir()) == []


def interrupted(model: Path, folder: Path, number: int, moment: Callable[[], bool]) -> subprocess.Popen[str]:
    process = subprocess.Popen(command(SLOW, model, folder), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not moment():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    return process


def writing(folder: Path) -> Callable[[], bool]:
    """True once a file has begun to grow."""
    new = folder.with_name(f".{folder.name}.partial") / "new"
    return lambda: new.is_dir() and any(path.stat().st_size for path in new.iterdir())


@posix
def test_ctrl_c_leaves_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    process = interrupted(tiny_folder, tmp_path / "out", signal.SIGINT, writing(tmp_path / "out"))
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; nothing was left half-written"
    assert list(tmp_path.iterdir()) == []


@posix
def test_kill_leaves_no_half_bundle_and_the_next_run_clears(tiny_folder: Path, tmp_path: Path) -> None:
    process = interrupted(tiny_folder, tmp_path / "out", signal.SIGKILL, writing(tmp_path / "out"))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    done = run("from vlmexport.cli import main; main()", tiny_folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify(tmp_path / "out", read_manifest(tmp_path / "out"))


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_file_system(tiny_folder: Path, tmp_path: Path) -> None:
    """The size that is free is seen beforehand; so the file system is filled while the export runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    try:
        process = subprocess.Popen(command(SLOW, tiny_folder, disk / "out"), stderr=subprocess.PIPE, text=True)
        while not writing(disk / "out")():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1 << 16))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert errors.splitlines()[-1].startswith("error: no space left for")
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
