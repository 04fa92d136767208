"""A bundle is run, benched and served by an installation that cannot export: torch and transformers are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_bundles import Bundles, picture
from vlmexport.console import QUIET
from vlmexport.extras import EXTRAS
from vlmexport.flags import gguf_recipe, vision_flags
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

ABSENT = [name for name in EXTRAS["export"] if name != "huggingface_hub"]
"""Packages of the extra ``export``; one of them comes with tokenizers anyway."""

KINDS = ("onnx", "gguf", "hybrid")
ABOUT = (
    "from pathlib import Path; from vlmexport.artifact.bundle.manifest import read_manifest;"
    "import vlmexport.serve.server as s; b = Path({bundle!r}); print(len(s.routes(b, read_manifest(b), {{}})))"
)


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which no process, nor one that it starts, can import what exports need."""
    folder = tmp_path_factory.mktemp("slim")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not here', name='{name}')\n")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def bundles(tiny_folder: Path, onnx_bundle: Bundles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    root = tmp_path_factory.mktemp("slim-bundles")
    name, flags = gguf_recipe("f16")
    hybrid = flags | vision_flags("onnx-fp32", None, name, name)
    export(str(tiny_folder), resolve(name, flags), root / "gguf", console=QUIET)
    export(str(tiny_folder), resolve(name, hybrid), root / "hybrid", console=QUIET)
    return {"onnx": onnx_bundle("fp32"), "gguf": root / "gguf", "hybrid": root / "hybrid"}


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_is_asked(kind: str, bundles: dict[str, Path], slim: dict[str, str], tmp_path: Path) -> None:
    """The answer is that of an installation that has everything, in which torch stays out as well."""
    picture(0).save(tmp_path / "image.png")
    question = (bundles[kind], "what is the image ?", "--image", tmp_path / "image.png", "--max-new-tokens", "4")
    done = run(slim, "-m", "vlmexport", "run", *question, "--json")
    assert done.returncode == 0, done.stderr
    script = (
        "import sys; from pathlib import Path; from vlmexport import ask;"
        "print(''.join(ask(sys.argv[1], [Path(sys.argv[4])], sys.argv[2], int(sys.argv[6]))));"
        f"print(sorted({set(ABSENT)!r} & set(sys.modules)))"
    )
    whole = run(dict(os.environ), "-c", script, *question)
    *answer, loaded = whole.stdout.removesuffix("\n").split("\n")
    assert loaded == "[]"
    assert json.loads(done.stdout)["answer"] == "\n".join(answer)


@pytest.mark.slow
def test_bundles_are_benched(bundles: dict[str, Path], slim: dict[str, str]) -> None:
    given = [bundles["onnx"], bundles["gguf"]]
    done = run(slim, "-m", "vlmexport", "bench", *given, "--new-tokens", "2", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["kind"] for one in json.loads(done.stdout)] == ["onnx", "gguf"]


def test_a_bundle_is_served(onnx_bundle: Bundles, slim: dict[str, str]) -> None:
    done = run(slim, "-c", ABOUT.format(bundle=str(onnx_bundle("fp32"))))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


@pytest.mark.parametrize("command", ["onnx", "inspect"])
def test_what_cannot_be_done_is_one_line(command: str, slim: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlmexport", command, "demo"], env=slim, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("which is not installed: pip install 'vlmexport[export]'")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
