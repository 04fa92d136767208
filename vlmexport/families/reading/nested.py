"""Names of tensors as transformers saves LLaVA and its kin, and what their configs may say beside ``text_config``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import section

_PROJECTOR = {"linear_1": "0", "linear_2": "2"}
_TOWERS = ("vision_model.", "timm_model.")
_OUTSIDE = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")


def place(name: str) -> tuple[str, str]:
    """Before transformers 4.52 and again from 5 on saved as ``language_model.model.…`` and ``language_model.lm_head``,
    between as ``model.language_model.…`` and ``lm_head``; the tower with or without ``vision_model.``, one of timm with
    or without ``timm_model.``."""
    inner = name.removeprefix("model.")
    if inner.startswith("vision_tower."):
        inner = inner.removeprefix("vision_tower.")
        return "vision", inner[len(next(filter(inner.startswith, _TOWERS), "")) :]
    if inner.startswith("multi_modal_projector."):
        layer, _, part = inner.removeprefix("multi_modal_projector.").partition(".")
        return "projector", f"{_PROJECTOR.get(layer, layer)}.{part}"
    if name.startswith("model.language_model."):
        return "language", "model." + name.removeprefix("model.language_model.")
    return "language", name.removeprefix("language_model.")


def outside(config: dict[str, Any]) -> dict[str, Any]:
    """What stands beside ``text_config``, where it does not say it itself."""
    inside = section(config, "text_config", Path("config.json")) or {}
    return {key: config[key] for key in _OUTSIDE if config.get(key) is not None and not inside.get(key)}
