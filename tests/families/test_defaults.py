"""Defaults of config classes are those of the installed transformers, in its file and where a family uses them."""

from __future__ import annotations

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests import config_defaults
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import Unsupported
from vlmexport.families.reading.defaults import FILE, defaults, filled, refuse_unread
from vlmexport.model.language import llama, qwen2

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 32}


def test_the_file_is_what_the_script_writes() -> None:
    assert FILE.read_text(encoding="utf-8") == config_defaults.text(), "write it again: python -m tests.config_defaults"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "clip_vision_model", "siglip_vision_model"])
def test_a_sparse_config_is_what_the_class_makes_of_it(kind: str) -> None:
    """Whatever a class derives from other fields it derives from ours as well."""
    given = {"hidden_size": 64, "num_attention_heads": 4}
    whole, sparse = CONFIG_MAPPING[kind](**filled(given, kind)), CONFIG_MAPPING[kind](**given)
    assert whole.to_dict() == sparse.to_dict()


def test_the_float_model_is_built_from_the_whole_section() -> None:
    """What a Spec does not name reaches transformers' class too."""
    spec = LanguageSpec("qwen2", 32, 64, 96, 2, 4, 2, 16, 1e-6, 1e6, 128, False, section={"attention_bias": True})
    assert qwen2.build(spec).config.attention_bias is True
    biased = llama.build(LanguageSpec(**vars(spec) | {"kind": "llama"}))
    assert biased.model.layers[0].self_attn.q_proj.bias is not None


@pytest.mark.parametrize(
    "section",
    [
        {"attention_dropout": 0.1, "initializer_range": 0.5, "torch_dtype": "bfloat16", "transformers_version": "4.39"},
        {"mlp_bias": False, "attention_bias": False, "_name_or_path": "a/b", "top_k": 50, "tune_mm_mlp_adapter": True},
        {"something_new": None, "something_else": [], "architectures": ["X"]},
    ],
)
def test_keys_without_effect_are_accepted(section: dict[str, object]) -> None:
    refuse_unread(section | WIDE, "llama", tuple(WIDE), "config.json")


@pytest.mark.parametrize("section", [{"mlp_bias": True}, {"num_experts": 8}, {"scale_emb": 0.0}])
def test_other_keys_are_refused_by_name(section: dict[str, object]) -> None:
    with pytest.raises(Unsupported, match=f"config.json: {next(iter(section))} is "):
        refuse_unread(section | WIDE, "llama", tuple(WIDE), "config.json")


def test_every_default_is_there() -> None:
    assert defaults("llava")["vision_config"]["image_size"] == 336
    assert defaults("qwen2")["max_position_embeddings"] == 32768
