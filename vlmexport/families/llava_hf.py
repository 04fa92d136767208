"""LLaVA-1.5 as transformers saves it (``LlavaForConditionalGeneration``): a config inside the config for each part.

What such a config leaves out is a default of transformers' configuration classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import section
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec
from vlmexport.errors import Unsupported
from vlmexport.families.reading import language, vision
from vlmexport.families.reading.defaults import filled, refuse_unread
from vlmexport.families.reading.published import Published, pad_id, stop_ids, stored_type, token_id

ARCHITECTURES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)
SECTIONS = ("text_config",)
_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
_READ = (
    "text_config", "vision_config", "image_token_id", "image_token_index", "image_seq_length", "projector_hidden_act",
    "vision_feature_select_strategy", "vision_feature_layer", "bos_token_id", "eos_token_id", "pad_token_id",
    "tie_word_embeddings",
)  # fmt: skip
_FEATURES = {"default": "patch", "full": "cls_patch"}


def place(name: str) -> tuple[str, str]:
    """Before transformers 4.52 and again from 5 on saved as ``language_model.model.…`` and ``language_model.lm_head``,
    between as ``model.language_model.…`` and ``lm_head``; the tower with or without ``vision_model.``."""
    inner = name.removeprefix("model.")
    if inner.startswith("vision_tower."):
        return "vision", inner.removeprefix("vision_tower.").removeprefix("vision_model.")
    if inner.startswith("multi_modal_projector."):
        layer, _, part = inner.removeprefix("multi_modal_projector.").partition(".")
        return "projector", f"{_PROJECTOR.get(layer, layer)}.{part}"
    if name.startswith("model.language_model."):
        return "language", "model." + name.removeprefix("model.language_model.")
    return "language", name.removeprefix("language_model.")


def tower(config: dict[str, Any]) -> str | None:
    """It lies inside."""
    return None


def spec(published: Published) -> Spec:
    """``text_config`` and ``vision_config`` over their defaults.

    Raises:
        Unsupported: another language model or tower inside, or a projector that is not known.
    """
    config, file = filled(published.config, "llava"), published.file
    refuse_unread(published.config, "llava", _READ, str(file))
    text = filled(section(config, "text_config", file) or {}, "llama")
    given = filled(section(config, "vision_config", file) or {}, "clip_vision_model")
    if text["model_type"] != "llama":
        raise Unsupported(f"{file}: a {text['model_type']!r} language model is not known", "known: llama")
    if given["model_type"] != "clip_vision_model":
        raise Unsupported(f"{file}: a {given['model_type']!r} tower is not known", "known: clip_vision_model")
    refuse_unread(given, "clip_vision_model", vision.READ, f"{file}, vision_config")
    activation = config["projector_hidden_act"]
    if activation != "gelu":
        raise Unsupported(f"{file}: projector_hidden_act {activation!r} is not known", "known: gelu")
    strategy = str(config["vision_feature_select_strategy"])
    if strategy not in _FEATURES:
        raise Unsupported(f"{file}: vision_feature_select_strategy {strategy!r} is unknown", "known: default, full")
    given, said_in = published.of_tower(given)
    encoder = vision.layered_tower(
        "clip", given, published.shapes["vision"], said_in,
        select_layer=config["vision_feature_layer"], select_feature=_FEATURES[strategy],
    )  # fmt: skip
    text |= _outside(config)
    decoder = language.published(text, file)
    return Spec(
        name=published.name,
        layout="llava-hf",
        image_processor=published.image_processor(encoder.image_size),
        vision=encoder,
        projector=ProjectorSpec("mlp2x_gelu", encoder.hidden_size, decoder.hidden_size, encoder.num_patches),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=token_id(text, "bos_token_id", 1, file),
        eos_token_id=token_id(text, "eos_token_id", 2, file),
        stop_token_ids=stop_ids(text, published),
        chat_template=published.chat_template,
        max_images=None,
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=config.get("image_token_id", config["image_token_index"]),
    )


def _outside(config: dict[str, Any]) -> dict[str, Any]:
    """Keys that may stand beside ``text_config`` and not in it."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
    inside = section(config, "text_config", Path("config.json")) or {}
    return {key: config[key] for key in keys if config.get(key) is not None and not inside.get(key)}
