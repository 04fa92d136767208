"""``pip install 'vlmexport[run]'`` into an empty environment, which then asks bundles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.mutations.conftest import Right, right, shared  # noqa: F401 - bundles that other tests export, too
from tests.onnx_bundles import recipe
from vlmexport import ask
from vlmexport.calibrate import Statistics
from vlmexport.demo.heldout import heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.pipeline import export_checkpoint
from vlmexport.source.checkpoint import Checkpoint

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
def bundles(
    right: Right,  # noqa: F811
    short: Checkpoint,
    short_statistics: Statistics,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:
    """The demo for x86 and llama.cpp, and a tiny model for arm64."""
    arm64 = tmp_path_factory.mktemp("install") / "arm64"
    export_checkpoint(short, recipe("int8", "qnnpack"), arm64, statistics=short_statistics)
    return [right("int8"), right("gguf"), arm64]


def test_it_asks_bundles(slim: Path, bundles: list[Path], tmp_path: Path) -> None:
    scene = next(heldout_scenes(1))
    question = heldout_questions(scene, 1)[0].text
    paint(scene).save(tmp_path / "scene.png")
    flags = ("--image", tmp_path / "scene.png", "--max-new-tokens", "64", "--json")
    for bundle in bundles:
        done = run(slim, "-m", "vlmexport", "run", bundle, question, *flags)
        assert done.returncode == 0, done.stderr
        expected = "".join(ask(str(bundle), tmp_path / "scene.png", question, 64))
        assert json.loads(done.stdout)["answer"] == expected != ""


def test_it_has_what_asking_takes_and_no_more(slim: Path) -> None:
    script = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    assert run(slim, "-c", script, *ABSENT).stdout == "[]\n"
    assert run(slim, "-m", "vlmexport", "--version").returncode == 0
    assert "onnx-x86" in run(slim, "-m", "vlmexport", "recipes").stdout
    script = "import vlmexport; print(vlmexport.__path__[0])"
    data = Path(run(slim, "-c", script).stdout.strip()) / "_data"
    held = {path.relative_to(data).as_posix() for path in (data / "recipes").rglob("*")}
    assert held == {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("*.toml")}


@pytest.mark.parametrize("command", ["onnx demo", "gguf demo", "check .", "new -o new", "plan demo", "calibrate demo"])
def test_what_exports_is_one_line(command: str, slim: Path) -> None:
    done = run(slim, "-m", "vlmexport", *command.split())
    assert (done.returncode, done.stdout) == (4, "")
    (line,) = done.stderr.splitlines()
    assert line.endswith("which is not installed: pip install 'vlmexport[export]'")
