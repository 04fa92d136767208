"""``general.*``: what the checkpoint says of itself stands in both files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export, metadata, value_types
from vlmexport.artifact.gguf import metadata as gguf_about
from vlmexport.checkpoint.about import read_about
from vlmexport.errors import CheckpointError
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

CARD = """---
license: other
license_name: llama2
license_link: https://example.org/license
base_model:
- mtgv/MobileLLaMA-1.4B-Chat
- openai/clip-vit-large-patch14-336
---
# A model
"""


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_checkpoint(tmp_path_factory.mktemp("about") / "tiny", tiny_spec(num_layers=1))
    (folder / "README.md").write_text(CARD)
    return open_checkpoint(folder, "mtgv/MobileVLM_V2-1.7B")


def test_both_files(described: Checkpoint, tmp_path: Path) -> None:
    export(described, tmp_path / "out", type="q8_0")
    for path, kind in ((p, "mmproj" if p.name.startswith("mmproj") else "model") for p in tmp_path.glob("out/*.gguf")):
        found, types = metadata(path), value_types(path)
        assert found["general.type"] == kind
        assert found["general.license"] == "other"
        assert found["general.license.name"] == "llama2"
        assert found["general.license.link"] == "https://example.org/license"
        assert found["general.source.repo_url"] == "https://huggingface.co/mtgv/MobileVLM_V2-1.7B"
        assert found["general.base_model.count"] == 2
        assert found["general.base_model.0.name"] == "MobileLLaMA-1.4B-Chat"
        assert found["general.base_model.0.organization"] == "mtgv"
        assert found["general.base_model.1.repo_url"] == "https://huggingface.co/openai/clip-vit-large-patch14-336"
        assert found["general.quantized_by"].startswith("vlmexport ")
        assert found["general.tags"] == ["image-text-to-text"]
        assert types["general.base_model.count"] == types["general.file_type"] == ["UINT32"]
        assert found["general.size_label"].endswith(("K", "M"))


def test_language_model(described: Checkpoint, tmp_path: Path) -> None:
    export(described, tmp_path / "out", type="q8_0")
    found = metadata(next(tmp_path.glob("out/*Q8_0.gguf")))
    assert found["general.file_type"] == 7
    assert found["general.sampling.temp"] == 0
    assert found["llama.context_length"] == 2048
    assert found["llama.rope.freq_base"] == 10000
    assert found["llama.rope.dimension_count"] == 64
    ids = {key: found[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "unknown")}
    assert ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert "tokenizer.ggml.padding_token_id" not in found


@pytest.mark.parametrize(
    ("card", "config", "origin", "bases"),
    [
        ("", {}, "mtgv/MobileVLM-1.7B", ("mtgv/MobileVLM-1.7B",)),
        ("", {"_name_or_path": "lmsys/vicuna-7b-v1.5"}, "/models/mine", ("lmsys/vicuna-7b-v1.5",)),
        ("", {"_name_or_path": "/home/someone/checkpoints"}, "/models/mine", ()),
        ("---\nbase_model: a/b\n---\n", {"_name_or_path": "c/d"}, "e/f", ("a/b",)),
        ("---\nlicense: [unclosed\n---\n", {}, "e/f", ("e/f",)),
        ("---\n- a list\n---\n", {}, "/models/mine", ()),
        ("\xff---", {}, "/models/mine", ()),
    ],
)
def test_base_models(card: str, config: dict[str, Any], origin: str, bases: tuple[str, ...], tmp_path: Path) -> None:
    if card:
        (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert read_about(tmp_path, origin, config).base_models == bases


def test_a_folder_leaves_no_path_in_the_file(tiny: Checkpoint, tmp_path: Path) -> None:
    export(tiny, tmp_path / "out", type="q8_0")
    for path in tmp_path.glob("out/*.gguf"):
        assert str(tiny.path.parent).encode() not in path.read_bytes()[:100_000]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"temp": 0.0}),
        ({"do_sample": False, "temperature": 0.9}, {"temp": 0.0}),
        ({"do_sample": True}, {"temp": 1.0}),
        (
            {"do_sample": True, "temperature": 0.5, "top_p": 0.75, "top_k": 20},
            {"temp": 0.5, "top_k": 20, "top_p": 0.75},
        ),
        ({"do_sample": True, "temperature": "hot", "top_p": None}, {"temp": 1.0}),
    ],
)
def test_sampling(config: dict[str, Any], expected: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    fields = gguf_about.sampling(read_about(tmp_path, "x", {}))
    assert {key.removeprefix("general.sampling."): value for key, (_, value) in fields.items()} == expected
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_about(tmp_path, "x", {})


@pytest.mark.parametrize(
    ("count", "label"),
    [(900, "0.9K"), (7_212_345, "7.2M"), (134_515_008, "135M"), (999_600_000, "1.0B"), (6_738_415_616, "6.7B")],
)
def test_size_label(count: int, label: str) -> None:
    assert gguf_about.size_label(count) == label
