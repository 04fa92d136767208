"""LLaVA-1.5 as transformers saves it (``LlavaForConditionalGeneration``): a config inside the config for each part.

What such a config leaves out is a default of transformers' configuration classes; the defaults stand here, so that
reading a checkpoint imports none of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import architectures, section
from vlmexport.checkpoint.settings import Settings
from vlmexport.errors import Unsupported

MODEL_TYPES: tuple[str, ...] = ("LlavaForConditionalGeneration",)
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


def recognise(config: dict[str, Any]) -> str | None:
    """``llava-hf``: the architecture, or the model type ``llava`` with configs inside."""
    names = architectures(config)
    inside = config.get("model_type") == "llava" and "text_config" in config and not names
    return "llava-hf" if MODEL_TYPES[0] in names or inside else None


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


def settings(config: dict[str, Any], path: Path) -> Settings:
    """``text_config`` and ``vision_config`` over their defaults.

    Raises:
        Unsupported: another language model or tower inside, or a projector that is not known.
    """
    text = LLAMA | (section(config, "text_config", path) or {})
    vision_config = section(config, "vision_config", path)
    vision = TOWER if vision_config is None else CLIP | vision_config
    if text["model_type"] != "llama":
        raise Unsupported(f"{path}: a {text['model_type']!r} language model is not known", "known: llama")
    if vision["model_type"] != "clip_vision_model":
        raise Unsupported(f"{path}: a {vision['model_type']!r} tower is not known", "known: clip_vision_model")
    activation = config.get("projector_hidden_act", "gelu")
    if activation != "gelu":
        raise Unsupported(f"{path}: projector_hidden_act {activation!r} is not known", "known: gelu")
    strategy = str(config.get("vision_feature_select_strategy", "default"))
    if strategy not in _FEATURES:
        raise Unsupported(f"{path}: vision_feature_select_strategy {strategy!r} is unknown", "known: default, full")
    return Settings(
        text=text | _outside(config),
        vision=vision,
        tower=None,
        projector="mlp2x_gelu",
        select_layer=config.get("vision_feature_layer", -2),
        select_feature=_FEATURES[strategy],
        aspect_ratio=None,
        image_token=config.get("image_token_index", config.get("image_token_id", _IMAGE_TOKEN)),
    )


def _outside(config: dict[str, Any]) -> dict[str, Any]:
    """Keys that may stand beside ``text_config`` and not in it."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
    inside = section(config, "text_config", Path("config.json")) or {}
    return {key: config[key] for key in keys if config.get(key) is not None and not inside.get(key)}
