"""Damaged and hostile input: one clear line, the right exit code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.model import load
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import locate, open_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_folder_and_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_model(str(tmp_path))


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_checkpoint(folder)


def test_unknown_model_type(folder: Path) -> None:
    edit_config(folder, model_type="gpt5", architectures=["Gpt5"])
    with pytest.raises(Unsupported, match="'gpt5'"):
        open_checkpoint(folder)


def test_unknown_projector(folder: Path) -> None:
    edit_config(folder, mm_projector_type="magic")
    with pytest.raises(Unsupported, match="unknown projector 'magic'"):
        load(open_checkpoint(folder))


def test_shapes_against_config(folder: Path) -> None:
    edit_config(folder, intermediate_size=1024)
    with pytest.raises(CheckpointError, match=r"gate_proj.*\[512, 256\].*\[1024, 256\]"):
        load(open_checkpoint(folder))


def test_vision_config_against_tensors(folder: Path) -> None:
    edit_config(folder, vision_config={"hidden_size": 128})
    with pytest.raises(CheckpointError, match=r"vision_config\.hidden_size is 128, the tensors say 64"):
        open_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_truncated_safetensors(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, int(keep if keep >= 1 or keep == 0 else keep * size))
    with pytest.raises(CheckpointError, match="is damaged"):
        open_checkpoint(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(folder)


def test_a_missing_and_an_unknown_tensor(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    missing = {name: value for name, value in state.items() if name != "model.norm.weight"}
    save_file(missing, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight"):
        load(open_checkpoint(folder))
    save_file(state | {"model.extra.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(Unsupported, match=r"unknown: model\.extra\.weight"):
        load(open_checkpoint(folder))


def test_known_extras_are_skipped(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None],
    }
    save_file(state | extra, folder / "model.safetensors")
    load(open_checkpoint(folder))


def test_bin_checkpoint_equals_safetensors(folder: Path) -> None:
    expected = load(open_checkpoint(folder)).state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = load(open_checkpoint(folder)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def test_a_malicious_pickle_runs_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Evil(str(tmp_path / "owned")), file)
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        open_checkpoint(folder)
    torch.save({"x": Evil(str(tmp_path / "owned"))}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        open_checkpoint(folder)
    assert not (tmp_path / "owned").exists()


def test_shards(folder: Path) -> None:
    expected = load(open_checkpoint(folder)).state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    half = len(names) // 2
    parts = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = load(open_checkpoint(folder)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard that is missing: b\.safetensors"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../model/a.safetensors")}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        open_checkpoint(folder)


def test_damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="is not a SentencePiece model"):
        _ = open_checkpoint(folder).tokenizer
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.model"):
        _ = open_checkpoint(folder).tokenizer
