"""Configs of LLaVA's own code and of what descends from it: a language model's, with keys of the whole beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag
from vlmexport.errors import CheckpointError, Unsupported

KEYS = frozenset((
    "image_aspect_ratio", "image_grid_pinpoints", "mm_hidden_size", "mm_patch_merge_type", "mm_projector_lr",
    "mm_projector_type", "mm_use_im_patch_token", "mm_use_im_start_end", "mm_vision_select_feature",
    "mm_vision_select_layer", "mm_vision_tower", "mm_vision_tower_lr", "use_mm_proj", "vision_config", "vision_tower",
    "vision_tower_type",
))  # fmt: skip
"""Keys that are read, or that say how the model was trained."""

_ASPECT_RATIOS = {"pad": True, "square": False, "crop": False, "None": False}


def pads(config: dict[str, Any], path: Path) -> bool:
    """Whether pictures are padded to a square; else their middle is cut out.

    Raises:
        Unsupported: images are cut in tiles.
    """
    merge = config.get("mm_patch_merge_type")
    if merge not in (None, "flat"):
        raise Unsupported(f"{path}: mm_patch_merge_type {merge!r} is unknown", "known: flat (no tiling)")
    ratio = str(config.get("image_aspect_ratio"))
    if ratio not in _ASPECT_RATIOS:
        raise Unsupported(
            f"{path}: image_aspect_ratio {ratio!r} is unknown", f"known: {', '.join(_ASPECT_RATIOS)} (no tiling)"
        )
    return _ASPECT_RATIOS[ratio]


def marks(config: dict[str, Any], path: Path) -> bool:
    """Whether the image stands between ``<im_start>`` and ``<im_end>``.

    Raises:
        CheckpointError: it is neither true nor false.
    """
    try:
        return flag(config, "mm_use_im_start_end")
    except TypeError as error:
        raise CheckpointError(f"{path} garbles {error}", "use the published config.json") from error


def tower(config: dict[str, Any]) -> str | None:
    """``mm_vision_tower``, or what it was called before."""
    named = config.get("mm_vision_tower") or config.get("vision_tower")
    return str(named) if named else None
