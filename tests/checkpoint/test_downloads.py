"""Folders as downloads and trainers leave them: opened where that is safe, else told as what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.checkpoints import State, write_weights
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.images import read_image
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import open_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3000000000\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def state(tiny_folder: Path) -> State:
    """The tiny model's tensors."""
    return load_file(tiny_folder / WEIGHTS)


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        _ = open_checkpoint(folder).tokenizer
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("content", "what", "cure"),
    [(POINTER, "is a Git LFS pointer, not the file itself", "git lfs pull"), (PAGE, "is a web page", "download link")],
)
@pytest.mark.parametrize(
    "file",
    [WEIGHTS, "pytorch_model.bin", "model.safetensors.index.json", "tokenizer.model", "tokenizer.json", "config.json"],
)
def test_a_pointer_or_a_page(file: str, content: str, what: str, cure: str, folder: Path) -> None:
    if file in ("pytorch_model.bin", "model.safetensors.index.json"):
        (folder / WEIGHTS).unlink()
    if file == "tokenizer.json":
        (folder / "tokenizer.model").unlink()
    (folder / file).write_text(content)
    error = refused(folder)
    assert error.what.startswith(f"{folder / file} {what}")
    assert cure in error.cure


def test_a_picture_that_is_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text(POINTER)
    with pytest.raises(UsageError, match=r"photo\.jpg is a Git LFS pointer.*git lfs pull"):
        read_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("file", ["config.json", "added_tokens.json", "model.safetensors.index.json"])
def test_a_document_that_an_editor_has_saved(file: str, encoding: str, folder: Path, state: State) -> None:
    if "index" in file:
        (folder / WEIGHTS).unlink()
        write_weights(folder, state, shards=2)
    text = (folder / file).read_text() if (folder / file).exists() else "{}"
    (folder / file).write_text(text, encoding=encoding)
    _ = open_checkpoint(folder).tokenizer


@pytest.mark.parametrize("missing", ["vision_tower", "mm_projector", "lm_head", "model.layers.1."])
@pytest.mark.parametrize("shards", [1, 2])
def test_stale_safetensors_beside_a_whole_bin(missing: str, shards: int, folder: Path, state: State) -> None:
    save_file({name: value for name, value in state.items() if missing not in name}, folder / WEIGHTS)
    write_weights(folder, state, "bin", shards)
    error = refused(folder)
    count = sum(missing in name for name in state)
    assert f"holds weights twice: {WEIGHTS} is read, and lacks {count} tensors of pytorch_model" in error.what
    assert error.cure == f"if {WEIGHTS} is the older one, move it and its index away"
    (folder / WEIGHTS).unlink()
    open_checkpoint(folder)


def test_a_bin_with_buffers_of_an_older_version_is_not_what_is_missing(folder: Path, state: State) -> None:
    left = {name: value for name, value in state.items() if name != "model.norm.weight"}
    save_file(left, folder / WEIGHTS)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": left["lm_head.weight"].flatten()[:4].clone()}
    write_weights(folder, left | buffer, "bin")
    assert "1 tensor is missing: model.norm.weight" in refused(folder).what


def test_both_formats_are_no_trouble_where_they_hold_the_same(folder: Path, state: State) -> None:
    write_weights(folder, state, "bin")
    assert open_checkpoint(folder).fingerprints.keys() == {WEIGHTS}
    save_file({name: value for name, value in state.items() if name != "model.norm.weight"}, folder / WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(b"damaged")
    assert "1 tensor is missing: model.norm.weight" in refused(folder).what


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapper_before_all_names(prefixes: str, folder: Path, state: State) -> None:
    save_file({prefixes + name: value for name, value in state.items()}, folder / WEIGHTS)
    found = open_checkpoint(folder).tensors
    assert sum(map(len, found.values())) == len(state)
    assert found["language"]["model.norm.weight"].shape == state["model.norm.weight"].shape


def test_a_wrapper_before_all_names_in_shards(folder: Path, state: State) -> None:
    (folder / WEIGHTS).unlink()
    write_weights(folder, {f"module.{name}": value for name, value in state.items()}, "bin", 2)
    open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "what", "cure"),
    [
        ("mm_projector.bin", "a projector alone, as pretraining leaves it", "put it into its language model"),
        ("non_lora_trainables.bin", "a part of a LoRA training", "merge"),
        ("model.safetensors.incomplete", "a download that was not finished", "download it again"),
        ("model.safetensors.part", "a download that was not finished", "download it again"),
        ("model-00001-of-00002.safetensors", "shards without their index", "model.safetensors.index.json"),
        ("pytorch_model-00001-of-00002.bin", "shards without their index", "pytorch_model.bin.index.json"),
        ("zero_to_fp32.py", "a checkpoint of DeepSpeed", "run its zero_to_fp32.py"),
        ("checkpoint-500", "a trainer's checkpoints", "pass one of them"),
        ("ggml-model-q4_k.gguf", "a model that is a GGUF already", "the float model"),
        ("tf_model.h5", "weights of another format", "save them as safetensors"),
        ("weights.safetensors", "weights under another name", "call them model.safetensors"),
    ],
)
def test_no_weights_but_something_else(name: str, what: str, cure: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"?")
    error = refused(folder)
    assert error.what == f"{folder} has no weights: it holds {what} ({name})"
    assert cure in error.cure


def test_a_file_of_the_checkpoint(folder: Path) -> None:
    error = refused(folder / WEIGHTS)
    assert (error.what, error.cure) == (
        f"{folder / WEIGHTS} is a file, not the folder of a checkpoint", f"pass {folder}"
    )  # fmt: skip


def test_a_folder_around_the_checkpoint(folder: Path) -> None:
    error = refused(folder.parent)
    assert error.cure == f"pass a folder inside, such as {folder}"


@pytest.fixture
def snapshot(folder: Path, tmp_path: Path) -> Path:
    """The Hub's cache: a folder of links into blobs."""
    root = tmp_path / "hub" / "models--owner--Tiny-VLM"
    found = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    found.mkdir(parents=True)
    (root / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, root / "blobs" / f"{number:040x}")
        (found / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")
    return found


def test_a_snapshot_has_its_repositorys_name(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").symlink_to(snapshot)
    monkeypatch.chdir(snapshot)
    for way in (str(snapshot), f"{snapshot}/", ".", str(tmp_path / "mine")):
        checkpoint = open_model(way)
        assert checkpoint.spec.name == "Tiny-VLM"
        assert checkpoint.origin == str(snapshot)
        assert checkpoint.about.source == "https://huggingface.co/owner/Tiny-VLM"
        assert checkpoint.about.base_models == ("owner/Tiny-VLM",)
    assert refused(snapshot.parent.parent).cure == f"pass a folder inside, such as {snapshot}"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"hidden_size": 256.5}, r"hidden_size \(256\.5 is no whole number\)"),
        ("config.json", {"num_hidden_layers": True}, r"num_hidden_layers \(True is no whole number\)"),
        ("config.json", {"vocab_size": "384"}, r"vocab_size \('384' is no whole number\)"),
        ("config.json", {"eos_token_id": "2"}, r"eos_token_id \('2' is no whole number\)"),
        ("config.json", {"tie_word_embeddings": "false"}, r"tie_word_embeddings \('false' is neither true nor false\)"),
        ("config.json", {"mm_use_im_start_end": "False"}, r"mm_use_im_start_end \('False' is neither"),
        ("preprocessor_config.json", {"do_pad": "no", "image_mean": [0, 0, 0]}, r"do_pad \('no' is neither"),
    ],
)
def test_values_of_another_type(file: str, changes: dict[str, Any], message: str, folder: Path) -> None:
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(before | changes))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_whole_numbers_may_be_written_with_a_point(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 256.0, "tie_word_embeddings": None}))
    assert open_checkpoint(folder).spec.language.hidden_size == 256
