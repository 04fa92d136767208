"""``pip install 'vlmexport[run]'`` into an empty environment, which then asks the demo's bundles."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.mutations.conftest import Right, right, shared  # noqa: F401 - bundles that other tests export, too
from vlmexport import ask
from vlmexport.demo.heldout import heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ABSENT = ("torch", "transformers", "onnx", "numba", "safetensors", "sentencepiece", "blake3")


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of the environment. The versions are those of this one, so that pip has them in its cache."""
    if "llama_cpp_python" not in pip("cache", "list", "llama_cpp_python").stdout:
        pytest.skip("llama-cpp-python's wheel is not in pip's cache, and to build it takes minutes")
    folder = tmp_path_factory.mktemp("install")
    versions = {one.metadata["Name"]: one.version.partition("+")[0] for one in distributions()}
    del versions["vlmexport"]
    (folder / "versions.txt").write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = pip("--python", str(python), "install", "-c", str(folder / "versions.txt"), f"{ROOT}[run]")
    if done.returncode and "connection" in done.stderr.lower():
        pytest.skip(f"the package index does not answer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Away from this checkout, which Python would find."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=python.parent, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bundles(right: Right, shared: Path) -> list[Path]:  # noqa: F811
    """The demo for x86, arm64 and llama.cpp."""
    arm64 = shared / "arm64"
    settings = {"calibration.samples": 12, "onnx.fallback": "predicted"}
    export("demo", resolve("onnx-arm64", settings, environ={}), arm64)
    return [right("int8"), arm64, right("gguf")]


def test_it_asks_the_demos_bundles(slim: Path, bundles: list[Path], tmp_path: Path) -> None:
    scene = next(heldout_scenes(1))
    question = heldout_questions(scene, 1)[0].text
    paint(scene).save(tmp_path / "scene.png")
    for bundle in bundles:
        done = run(slim, "-m", "vlmexport", "run", bundle, question, "--image", tmp_path / "scene.png")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "".join(ask(str(bundle), tmp_path / "scene.png", question, 64)).strip() != ""


def test_it_has_what_asking_takes_and_no_more(slim: Path) -> None:
    script = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert run(slim, "-c", script, *ABSENT).stdout == "[]\n"
    assert run(slim, "-m", "vlmexport", "--version").returncode == 0
    assert "onnx-x86" in run(slim, "-m", "vlmexport", "recipes").stdout


@pytest.mark.parametrize("command", ["onnx demo", "gguf demo", "check .", "new -o new", "plan demo", "calibrate demo"])
def test_what_exports_is_one_line(command: str, slim: Path) -> None:
    done = run(slim, "-m", "vlmexport", *command.split())
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("which is not installed: pip install 'vlmexport[export]'")
