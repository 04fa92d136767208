"""Other versions of Python than the one that runs this: every module compiles there, without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def found(version: str) -> str | None:
    """The interpreter of a version: pyenv's, whose commands on the path refuse versions that are not chosen, or the
    path's."""
    names = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    return str(names[-1]) if names else shutil.which(f"python{version}")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_module_compiles(version: str, tmp_path: Path) -> None:
    python = sys.executable if sys.version.startswith(version) else found(version)
    if python is None:
        pytest.skip(f"Python {version} is not here")
    done = subprocess.run(
        [python, "-W", "error", "-m", "compileall", "-q", "-f", str(ROOT / "vlmexport"), str(ROOT / "recipes")],
        env=os.environ | {"PYTHONPYCACHEPREFIX": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_is_said_of_versions() -> None:
    """The metadata name no version that this file does not look at, and the documents name those of the metadata."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert named
    assert set(named) <= set(VERSIONS)
    assert project["requires-python"] == f">={named[0]}"
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert all(f"Python {version}" in page for version in named)
    pins = [pin for pins in (project["dependencies"], *project["optional-dependencies"].values()) for pin in pins]
    for name in ("onnxruntime", "llama-cpp-python", "onnxscript"):
        (pin,) = [pin for pin in pins if re.match(rf"{name}[<>=]", pin)]
        assert f"`{pin}`" in page
