"""LLaVA-1.5 as transformers saves it (``LlavaForConditionalGeneration``): a config inside the config for each part.

What such a config leaves out is a default of transformers' configuration classes; the defaults stand here, so that
reading a checkpoint imports none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import section
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec
from vlmexport.errors import Unsupported
from vlmexport.families.reading import language, vision
from vlmexport.families.reading.published import Published, pad_id, stored_type, token_id

ARCHITECTURES = ("LlavaForConditionalGeneration",)
MODEL_TYPES = ("llava",)
SECTIONS = ("text_config",)
LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Defaults of ``LlamaConfig``."""

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""Defaults of ``CLIPVisionConfig``."""

TOWER = CLIP | {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
"""Default of ``LlavaConfig.vision_config``."""

_IMAGE_TOKEN = 32000
_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
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
    config, file = published.config, published.file
    text = LLAMA | (section(config, "text_config", file) or {})
    tower_config = section(config, "vision_config", file)
    given = TOWER if tower_config is None else CLIP | tower_config
    if text["model_type"] != "llama":
        raise Unsupported(f"{file}: a {text['model_type']!r} language model is not known", "known: llama")
    if given["model_type"] != "clip_vision_model":
        raise Unsupported(f"{file}: a {given['model_type']!r} tower is not known", "known: clip_vision_model")
    activation = config.get("projector_hidden_act", "gelu")
    if activation != "gelu":
        raise Unsupported(f"{file}: projector_hidden_act {activation!r} is not known", "known: gelu")
    strategy = str(config.get("vision_feature_select_strategy", "default"))
    if strategy not in _FEATURES:
        raise Unsupported(f"{file}: vision_feature_select_strategy {strategy!r} is unknown", "known: default, full")
    given, said_in = published.of_tower(given)
    encoder = vision.layered_tower(
        "clip", given, published.shapes["vision"], published.pixels, said_in,
        select_layer=config.get("vision_feature_layer", -2), select_feature=_FEATURES[strategy], aspect_ratio=None,
    )  # fmt: skip
    text |= _outside(config)
    decoder = language.llama(text, file)
    return Spec(
        name=published.name,
        layout="llava-hf",
        vision=encoder,
        projector=ProjectorSpec("mlp2x_gelu", encoder.hidden_size, decoder.hidden_size, encoder.num_patches),
        language=decoder,
        prompt=PromptSpec(),
        bos_token_id=token_id(text, "bos_token_id", 1, file),
        eos_token_id=token_id(text, "eos_token_id", 2, file),
        pad_token_id=pad_id(text),
        torch_dtype=stored_type(text),
        image_token_id=config.get("image_token_index", config.get("image_token_id", _IMAGE_TOKEN)),
    )


def _outside(config: dict[str, Any]) -> dict[str, Any]:
    """Keys that may stand beside ``text_config`` and not in it."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
    inside = section(config, "text_config", Path("config.json")) or {}
    return {key: config[key] for key in keys if config.get(key) is not None and not inside.get(key)}
