"""Setting up arm64's onnxruntime: what is missing is named, and nothing is left half-done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmexport.console import QUIET
from vlmexport.errors import MissingDependency
from vlmexport.runtime.ort.arm64 import install
from vlmexport.runtime.ort.arm64.root import root_folder

COMMAND = [sys.executable, "-m", "vlmexport.runtime.ort.arm64.install"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86 machine with an empty cache."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_takes_debian(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(MissingDependency, match="apt-get is not here"):
        install.install(QUIET)
    assert not cache.exists()


def test_what_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root_folder().mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    assert install.install(QUIET) == root_folder()


def test_an_arm64_machine_needs_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert install.main() == 0
    assert "nothing to set up" in capsys.readouterr().err
    assert not cache.exists()


def test_apt_must_know_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_run", lambda command, *_: "")
    with pytest.raises(MissingDependency, match="apt knows no mirror"):
        install._debian(tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not here")
@pytest.mark.skipif(not install._KEYRING.is_file(), reason="Debian's keyring is not installed")
def test_without_a_network(cache: Path) -> None:
    environment = os.environ | dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    result = subprocess.run(COMMAND, capture_output=True, text=True, env=environment)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.returncode, len(lines)) == (4, 1), result.stderr
    assert "apt-get failed while setting up arm64 (E: Failed to fetch" in lines[0]
    assert list(cache.iterdir()) == []
