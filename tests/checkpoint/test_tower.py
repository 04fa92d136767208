"""A vision tower in a folder of its own: where it is looked for, and that one inside is never replaced."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import State, canonical_state, published, tiny_spec, write_checkpoint, write_clip, write_json
from tests.manifests import manifest as made
from vlmexport.artifact.bundle.contents import source_of
from vlmexport.checkpoint import hub
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import CheckpointError, Unsupported, UsageError
from vlmexport.model import load
from vlmexport.parity.compare.source import _reference
from vlmexport.report.inspection import describe
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import open_model

SPEC: Spec = tiny_spec("ldpnet", image_size=168, num_layers=1)
HUB_ID = "openai/clip-vit-large-patch14-336"


@pytest.fixture(scope="module")
def state() -> dict[str, State]:
    return canonical_state(SPEC)


@pytest.fixture
def v1(state: dict[str, State], tmp_path: Path) -> Path:
    """MobileVLM V1, whose config names its tower by a Hub id."""
    inside = {part: tensors for part, tensors in state.items() if part != "vision"}
    return write_checkpoint(tmp_path / "v1", SPEC, state=published(inside))


@pytest.fixture
def clip(state: dict[str, State], tmp_path: Path) -> Path:
    """The tower in its own folder."""
    return write_clip(tmp_path / "clip", SPEC, state["vision"])


def edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def test_passed(v1: Path, clip: Path, state: dict[str, State]) -> None:
    checkpoint = open_model(str(v1), str(clip))
    assert checkpoint.tower is not None
    assert checkpoint.tower.origin == str(clip.resolve())
    found = load(checkpoint).vision.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in state["vision"].items())
    assert set(checkpoint.fingerprints) == {"model.safetensors", "vision_tower/pytorch_model.bin"}
    assert source_of(checkpoint).vision_tower == str(clip.resolve())


def test_found_beside_the_checkpoint_and_from_here(v1: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(v1 / "config.json", mm_vision_tower="../clip")
    assert open_checkpoint(v1).tower is not None
    edit(v1 / "config.json", mm_vision_tower=None, vision_tower="clip")
    monkeypatch.chdir(clip.parent)
    tower = open_checkpoint(v1).tower
    assert tower is not None
    assert os.path.isabs(tower.origin)


def test_from_the_hub(v1: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmexport.source.tower.download", lambda hub_id, *_: {HUB_ID: clip}[hub_id])
    tower = open_checkpoint(v1).tower
    assert tower is not None
    assert tower.origin == f"{HUB_ID}@clip"  # a snapshot's folder is called by its commit
    monkeypatch.setattr("vlmexport.source.locate.download", lambda hub_id, *_: {"me/v1": v1}[hub_id])
    assert open_model("me/v1", HUB_ID).tower is not None


def test_nowhere_says_what_to_pass(v1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(hub_id: str, *_: object) -> Path:
        raise CheckpointError(f"{hub_id} is no folder here, and the Hub did not give it (offline)", "check the name")

    monkeypatch.setattr("vlmexport.source.tower.download", offline)
    with pytest.raises(CheckpointError, match=rf"holds no vision tower: {HUB_ID}.*--vision-tower DIR"):
        open_checkpoint(v1)
    for named in ("./gone", None):
        edit(v1 / "config.json", mm_vision_tower=named)
        with pytest.raises(CheckpointError, match=r"holds no vision tower.*--vision-tower DIR"):
            open_checkpoint(v1)
    with pytest.raises(CheckpointError, match=r"--vision-tower \./gone does not exist"):
        open_checkpoint(v1, vision_tower="./gone")


def test_a_tower_inside_always_wins(clip: Path, state: dict[str, State], tmp_path: Path) -> None:
    """Its weights differ from those of the named folder, as after fine-tuning."""
    tuned = canonical_state(SPEC, seed=5)
    path = write_checkpoint(tmp_path / "v2", SPEC, state=published(tuned), mm_vision_tower=str(clip))
    checkpoint = open_checkpoint(path)
    assert checkpoint.tower is None
    name = "embeddings.class_embedding"
    assert torch.equal(load(checkpoint).vision.state_dict()[name], tuned["vision"][name].float())
    with pytest.raises(UsageError, match=r"carries its own vision tower.*leave out --vision-tower"):
        open_checkpoint(path, vision_tower=str(clip))


def test_its_own_config_counts(v1: Path, clip: Path) -> None:
    inside = json.loads((clip / "config.json").read_text())["vision_config"]
    told = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "num_attention_heads": 2}
    edit(clip / "config.json", vision_config=inside | told)
    edit(clip / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], do_pad=False)
    found = open_checkpoint(v1, vision_tower=str(clip)).spec
    assert found == replace(
        SPEC,
        vision=replace(SPEC.vision, hidden_act="gelu", layer_norm_eps=1e-6, num_heads=2),
        image_processor=replace(SPEC.image_processor, image_mean=(0.5,) * 3, image_std=(0.25,) * 3),
        name="v1",
    )
    write_json(clip / "config.json", inside | told)
    assert open_checkpoint(v1, vision_tower=str(clip)).spec == found


AS_PUBLISHED = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "attention_dropout": 0.0,
    "bad_words_ids": None, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "diversity_penalty": 0.0,
    "do_sample": False, "dropout": 0.0, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0, "initializer_range": 0.02, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "model_type": "clip_vision_model", "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_channels": 3, "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False,
    "output_scores": False, "prefix": None, "problem_type": None, "projection_dim": 768, "pruned_heads": {},
    "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "task_specific_params": None, "temperature": 1.0, "tie_encoder_decoder": False, "tie_word_embeddings": True,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torch_dtype": None, "torchscript": False,
    "transformers_version": "4.21.3", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
"""What OpenAI's ``vision_config`` of CLIP L/14 says beside the tower's sizes."""


def test_every_key_reaches_the_class(v1: Path, clip: Path) -> None:
    """What is said of the tower is in the config that transformers builds it from."""
    inside = json.loads((clip / "config.json").read_text())["vision_config"]
    edit(clip / "config.json", vision_config=AS_PUBLISHED | inside | {"attention_dropout": 0.25})
    found = open_checkpoint(v1, vision_tower=str(clip))
    assert found.spec == replace(SPEC, name="v1")
    assert found.spec.vision.section["num_channels"] == 3
    assert load(found, components=("vision",)).vision.config.attention_dropout == 0.25


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "siglip"}, "a tower of type 'siglip'"),
        ({"vision_config": {"num_channels": 4}}, "vision_config: num_channels is 4"),
        ({"vision_config": {"layer_scale": 0.1}}, "vision_config: layer_scale is 0.1, which is not known"),
        ({"vision_config": {"hidden_size": 32}}, "hidden_size is 32, the tensors say 64"),
        ({"vision_config": None}, "vision_config.hidden_size is 768"),
    ],
)
def test_wrong_towers(v1: Path, clip: Path, changes: dict[str, Any], reason: str) -> None:
    edit(clip / "config.json", **changes)
    with pytest.raises((CheckpointError, Unsupported), match=reason):
        open_checkpoint(v1, vision_tower=str(clip))


def test_an_empty_or_a_moved_folder(v1: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(v1, vision_tower=str(tmp_path / "empty"))
    shutil.copy(clip / "config.json", tmp_path / "empty")
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(v1, vision_tower=str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match="vision tower lacks the tensor"):
        open_checkpoint(v1, vision_tower=str(write_checkpointless_clip(tmp_path / "text")))


def write_checkpointless_clip(folder: Path) -> Path:
    """A CLIP of which only the text half is there, and one tensor of the other."""
    return write_clip(folder, SPEC, {"embeddings.class_embedding": torch.zeros(64)})


def test_hub_ids() -> None:
    assert hub.is_hub_id(HUB_ID)
    assert not hub.is_hub_id("./openai/clip")
    assert not hub.is_hub_id("a/b/c")


def test_a_check_finds_it_again(v1: Path, clip: Path, tmp_path: Path) -> None:
    source = source_of(open_model(str(v1), str(clip)))
    manifest = made("gguf", source)
    tower = _reference(manifest, None, None).tower
    assert tower is not None
    assert tower.origin == str(clip.resolve())
    moved = clip.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"--vision-tower .*clip does not exist"):
        _reference(manifest, None, None)
    assert _reference(manifest, None, str(moved)).spec == _reference(manifest, str(v1), str(moved)).spec
    write_clip(moved, SPEC, canonical_state(SPEC, seed=7)["vision"])
    with pytest.raises(CheckpointError, match="not the model that this bundle was made from"):
        _reference(manifest, None, str(moved))


def test_inspect_says_where_it_lies(v1: Path, clip: Path) -> None:
    facts = describe(str(v1), str(clip))[1]
    assert facts["tower"] == str(clip.resolve())
    assert facts["tokenizer"] == "tokenizer.model"
    assert facts["weight_files"] == ["model.safetensors", "vision_tower/pytorch_model.bin"]
    edit(v1 / "config.json", mm_vision_select_feature="cls_patch", mm_projector_type="ldpnet")
    assert "cls_patch" in describe(str(v1), str(clip))[1]["formats"]["gguf"]
