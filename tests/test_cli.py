"""The command line as a user meets it: exit codes, one line for an error, JSON, speed of --help.

Each kind of ending once in a process of its own, which takes seconds to import torch; the others inside of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.command import vlmexport
from vlmexport.text import plain


def process(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmexport", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"COLUMNS": "200"})


def assert_one_line_error(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, vlmexport.cli; print([m for m in ('torch', 'onnx', 'transformers', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    fastest = min(_seconds("-m", "vlmexport", "--help") for _ in range(5))
    bare = min(_seconds("-c", "pass") for _ in range(5))
    assert 0 < fastest - bare < 0.5


def _seconds(*command: str) -> float:
    """Of the processor: how long it takes depends on what else runs."""
    before = os.times()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_inspect(tiny_folder: Path) -> None:
    result = process("inspect", tiny_folder, "--json")
    facts = json.loads(result.stdout)
    assert facts["visual_tokens"] == 144
    assert facts["components"]["projector"]["kind"] == "ldpnetv2"
    assert facts["components"]["language"]["bytes"] == 2 * facts["components"]["language"]["parameters"]
    assert facts["libmtmd"]["class_token"] in ("first", "last")
    human = vlmexport("inspect", tiny_folder)
    assert "ldpnetv2" in human.stdout
    assert "libmtmd of llama-cpp-python 0." in human.stdout
    assert human.stderr == ""


@pytest.mark.slow
def test_errors(tmp_path: Path, tiny_folder: Path) -> None:
    assert_one_line_error(process("inspect", tmp_path / "no"), 2, "does not exist")
    assert_one_line_error(vlmexport("inspect", tmp_path), 2, "config.json")
    assert_one_line_error(vlmexport("check", tmp_path), 2, "is not a bundle")
    assert_one_line_error(vlmexport("onnx", tiny_folder, "--recipe", "nope", cwd=tmp_path), 2, "no recipe 'nope'")
    assert_one_line_error(vlmexport("gguf", tiny_folder, "--bits", "7", cwd=tmp_path), 2, "--bits 7")
    assert_one_line_error(vlmexport("gguf", tiny_folder, "--type", "q9_z", cwd=tmp_path), 2, "q9_z")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("projector", "image_size", "config", "reason"),
    [
        ("linear", 336, {}, "libmtmd cannot hold a linear projector"),
        ("mlp3x_gelu", 336, {}, "libmtmd computes mlp3x_gelu wrongly"),
        ("ldpnet", 168, {}, "24x24 grid for ldpnet, this one is 12x12"),
        ("ldpnetv2", 168, {}, "24x24 grid for ldpnetv2, this one is 12x12"),
        ("mlp2x_gelu", 336, {"mm_vision_select_feature": "cls_patch"}, "leaves out the class token"),
    ],
)
def test_unsupported_is_3_and_a_hybrid_is_offered(
    projector: str, image_size: int, config: dict[str, str], reason: str, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_spec(projector, image_size, num_layers=1), **config)
    result = vlmexport("gguf", model, "--type", "f16", cwd=tmp_path)
    assert_one_line_error(result, 3, reason, "--vision onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "as a hybrid" in json.loads(vlmexport("inspect", model, "--json").stdout)["formats"]["gguf"]


def test_vision_flags(tmp_path: Path, tiny_folder: Path) -> None:
    result = vlmexport("gguf", tiny_folder, "--vision", "gguf-f16", cwd=tmp_path)
    assert_one_line_error(result, 2, "--vision gguf-f16 is no ONNX recipe")
    assert_one_line_error(vlmexport("gguf", tiny_folder, "--vision", "nope", cwd=tmp_path), 2, "no recipe 'nope'")
    assert_one_line_error(vlmexport("gguf", tiny_folder, "--mmproj-type", "q4_0", cwd=tmp_path), 2, "mmproj_type")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_unreadable_image(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert_one_line_error(vlmexport("run", tiny_folder, "-i", tmp_path / "bad.png", "what?"), 2, "bad.png")
    assert_one_line_error(vlmexport("run", tiny_folder, "-i", tmp_path / "none.png", "what?"), 2, "does not exist")


def test_existing_output_is_left_alone(tmp_path: Path, tiny_folder: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    result = vlmexport("gguf", tiny_folder, "--type", "f16", "-o", out)
    assert_one_line_error(result, 2, "--force")
    result = vlmexport("gguf", tiny_folder, "--type", "f16", "-o", out, "--force")
    assert_one_line_error(result, 2, "is not vlmexport's")
    assert (out / "precious.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_errors(tmp_path: Path) -> None:
    result = process("inspect", tmp_path, "--json")
    assert (result.returncode, json.loads(result.stdout)["exit_code"]) == (2, 2)
    assert vlmexport("inspect").returncode == 2


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_pipe_that_broke_is_told_and_is_no_failed_gate(flags: tuple[str, ...]) -> None:
    """Typer and rich end with 1 there, without a word, whichever pipe it was."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-m", "vlmexport", "recipes", *flags]
        result = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert_one_line_error(result, 2, "ended early")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert "Traceback" in process("inspect", tmp_path, "--debug").stderr


@pytest.mark.slow
def test_run_streams_an_answer(tmp_path: Path, tiny_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    arguments = ("run", tiny_folder, "what is it?", "-i", tmp_path / "image.png", "--max-new-tokens", "5")
    human = process(*arguments)
    assert human.returncode == 0
    assert human.stdout.endswith("\n")
    answer = json.loads(vlmexport(*arguments, "--json").stdout)["answer"]
    assert human.stdout.strip() == plain(answer).strip()


@pytest.mark.parametrize("name", [(), ("onnx-x86",)])
def test_recipes(name: tuple[str, ...]) -> None:
    result = vlmexport("recipes", *name, "--json")
    assert json.loads(result.stdout)["onnx-x86"]["target"] == "x86"
