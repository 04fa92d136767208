"""MobileVLM V1 and V2 and LLaVA-1.5, as their own code saves them: a Llama whose config carries ``mm_…`` keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import architectures, flag, section
from vlmexport.checkpoint.settings import Settings
from vlmexport.errors import CheckpointError, Unsupported

_NAMES = {
    "mobilevlm": "mobilevlm",
    "MobileLlamaForCausalLM": "mobilevlm",
    "llava": "llava",
    "llava_llama": "llava",
    "LlavaLlamaForCausalLM": "llava",
}
MODEL_TYPES: tuple[str, ...] = tuple(_NAMES)
_TOWER = "model.vision_tower.vision_tower."
_PROJECTOR = "model.mm_projector."
_ASPECT_RATIOS = {"pad": "pad", "square": "crop", "crop": "crop", "None": "crop"}


def recognise(config: dict[str, Any]) -> str | None:
    """``mobilevlm`` or ``llava``, by model type or architecture."""
    names = architectures(config)
    if "LlavaForConditionalGeneration" in names or ("text_config" in config and not names):
        return None
    return next((_NAMES[name] for name in (str(config.get("model_type")), *names) if name in _NAMES), None)


def place(name: str) -> tuple[str, str]:
    """The tower lies under ``model.vision_tower.vision_tower.``, with or without ``vision_model.``."""
    if name.startswith(_TOWER):
        return "vision", name.removeprefix(_TOWER).removeprefix("vision_model.")
    if name.startswith(_PROJECTOR):
        return "projector", name.removeprefix(_PROJECTOR)
    return "language", name


def settings(config: dict[str, Any], path: Path) -> Settings:
    """The config is the language model's own.

    Raises:
        CheckpointError: a value is garbled.
        Unsupported: images are cut in tiles.
    """
    ratio = str(config.get("image_aspect_ratio"))
    if ratio not in _ASPECT_RATIOS:
        raise Unsupported(
            f"{path}: image_aspect_ratio {ratio!r} is unknown", f"known: {', '.join(_ASPECT_RATIOS)} (no tiling)"
        )
    try:
        marks = flag(config, "mm_use_im_start_end")
    except TypeError as error:
        raise CheckpointError(f"{path} garbles {error}", "use the published config.json") from error
    tower = config.get("mm_vision_tower") or config.get("vision_tower")
    return Settings(
        text=config,
        vision=section(config, "vision_config", path) or {},
        tower=str(tower) if tower else None,
        projector=str(config.get("mm_projector_type", "linear")),
        select_layer=config.get("mm_vision_select_layer", -2),
        select_feature=str(config.get("mm_vision_select_feature", "patch")),
        aspect_ratio=_ASPECT_RATIOS[ratio],
        marks=marks,
    )
