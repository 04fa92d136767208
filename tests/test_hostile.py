"""Damaged and hostile checkpoints through the whole export: one clear line, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny_spec, write_checkpoint, write_weights
from vlmexport.errors import VlmExportError
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

Damage = Callable[[Path], None]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few hundred kilobytes."""
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "model", tiny_spec("ldpnetv2", 168, num_layers=1))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncated(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)


def wrong_header_length(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + content[8:])


def garbled_header(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:8] + b"x" * 64 + content[72:])


def sharded(folder: Path) -> dict[str, Any]:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_weights(folder, state, shards=2)
    index: dict[str, Any] = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
    return index


def rewrite_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = sharded(folder)
    change(index["weight_map"])
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def shard_missing(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def shard_outside(folder: Path) -> None:
    rewrite_index(folder, lambda found: found.update({"x": "../model/model-00001-of-00002.safetensors"}))


def absolute_shard(folder: Path) -> None:
    rewrite_index(folder, lambda found: found.update({"x": "/etc/passwd"}))


def wrong_shard(folder: Path) -> None:
    files = {"model-00001-of-00002.safetensors": "model-00002-of-00002.safetensors"}
    rewrite_index(folder, lambda found: found.update({k: files.get(v, v) for k, v in list(found.items())[:1]}))


def tensor_in_no_shard(folder: Path) -> None:
    rewrite_index(folder, lambda found: found.update({"model.norm.bias": "model-00001-of-00002.safetensors"}))


def number_for_shard(folder: Path) -> None:
    rewrite_index(folder, lambda found: found.update({"x": 5}))


def numbers_for_shards(folder: Path) -> None:
    rewrite_index(folder, lambda found: found.update(dict.fromkeys(found, 5)))


def list_for_map(folder: Path) -> None:
    sharded(folder)
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": ["a"]}')


def other_shapes(folder: Path) -> None:
    edit_config(folder, hidden_size=512, head_dim=128)


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("owned",))


def malicious_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def malicious_archive(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")


def truncated_bin(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write_weights(folder, state, "bin")
    os.truncate(folder / "pytorch_model.bin", (folder / "pytorch_model.bin").stat().st_size // 2)


def missing_projector_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({name: value for name, value in state.items() if "peg" not in name}, folder / WEIGHTS)


def unknown_tensor(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"model.image_newline": torch.zeros(256)}, folder / WEIGHTS)


def deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def text_for_a_number(folder: Path) -> None:
    edit_config(folder, num_hidden_layers="many")


def infinite_token(folder: Path) -> None:
    edit_config(folder, eos_token_id=float("inf"))


def projector_unknown(folder: Path) -> None:
    edit_config(folder, mm_projector_type="magic")


def whole_numbers(folder: Path) -> None:
    """What is left of a checkpoint in 8 bits when a script has dropped its scales."""
    state = load_file(folder / WEIGHTS)
    layers = [name for name in state if name.startswith("model.layers.") and name.endswith("_proj.weight")]
    save_file(state | {name: state[name].sign().to(torch.int8) for name in layers}, folder / WEIGHTS)


def quantized(folder: Path) -> None:
    whole_numbers(folder)
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def lfs_pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3000000000\n")


def architecture_unknown(folder: Path) -> None:
    edit_config(folder, model_type="gpt5", architectures=7)


CASES: dict[Damage, tuple[int, str]] = {
    truncated: (2, "is damaged"),
    wrong_header_length: (2, "is damaged"),
    garbled_header: (2, "is damaged"),
    shard_missing: (2, "shard that is missing"),
    shard_outside: (2, "shard outside of its folder"),
    absolute_shard: (2, "shard outside of its folder"),
    wrong_shard: (2, "is said to be in"),
    tensor_in_no_shard: (2, "does not hold model.norm.bias"),
    number_for_shard: (2, "is not an index of shards"),
    numbers_for_shards: (2, "shard that is missing: 5"),
    list_for_map: (2, "is not an index of shards"),
    other_shapes: (2, "its config says"),
    malicious_pickle: (2, "cannot be loaded safely"),
    malicious_archive: (2, "cannot be loaded safely"),
    truncated_bin: (2, "cannot be loaded safely"),
    missing_projector_tensor: (2, "2 tensors are missing: peg.peg.0.bias"),
    unknown_tensor: (3, "unknown: model.image_newline"),
    deep_config: (2, "is not JSON"),
    no_tokenizer: (2, "has no tokenizer.model"),
    text_for_a_number: (2, "lacks or garbles"),
    infinite_token: (2, "garbles eos_token_id (inf is no whole number)"),
    projector_unknown: (3, "unknown projector 'magic'"),
    whole_numbers: (2, "holds whole numbers (i8) where a weight belongs, and no scales, and so do 6 more"),
    quantized: (3, "is quantized already (bitsandbytes, 8 bits"),
    lfs_pointer: (2, "is a Git LFS pointer"),
    architecture_unknown: (3, "model type 'gpt5'"),
}


@pytest.mark.parametrize("recipe", ["onnx-fp32", "onnx-x86", "gguf-f32", "gguf-q4_k_m"])
@pytest.mark.parametrize("damage", CASES, ids=lambda damage: damage.__name__)
def test_nothing_is_left(
    damage: Damage, recipe: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    damage(folder)
    code, reason = CASES[damage]
    with pytest.raises(VlmExportError) as caught:
        export(str(folder), resolve(recipe, environ={}), tmp_path / "out")
    assert caught.value.exit_code == code
    assert reason in caught.value.what
    assert caught.value.cure
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("command", "damage"), [("onnx", truncated), ("gguf", unknown_tensor)])
def test_on_the_command_line(command: str, damage: Damage, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    damage(folder)
    code, reason = CASES[damage]
    arguments = [sys.executable, "-m", "vlmexport", command, str(folder), "-o", str(tmp_path / "out")]
    result = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"})
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert reason in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_damaged_weights_are_found_without_torch_on_the_way_to_gguf(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    unknown_tensor(folder)
    code = (
        "import sys\nfrom vlmexport.source.locate import open_model\n"
        f"try: open_model({str(folder)!r})\nexcept Exception as error: print(error.exit_code, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["3", "False"]
