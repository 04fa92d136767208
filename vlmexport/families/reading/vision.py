"""The Spec of a tower of like layers (CLIP, SigLIP): its config and its tensors say it, and have to agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import whole
from vlmexport.checkpoint.spec import VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.defaults import defaults
from vlmexport.families.reading.published import Shapes

_CURE = "config and weights belong to different models: fix one of them"
_HEAD = 64
"""Width of a head in every published CLIP."""

READ = (
    "image_size",
    "patch_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "vocab_size",
    "tie_word_embeddings",
)
"""Keys of a tower's section that are read; words are among LLaVA's defaults and in old files, and no tower has any."""

_SIGLIPS = ("siglip", "siglip_normed", "idefics3")
_MODEL_TYPES = {"clip": "clip_vision_model", **dict.fromkeys(_SIGLIPS, "siglip_vision_model")}
_CLASS_TOKENS = {"clip": 1, **dict.fromkeys(_SIGLIPS, 0)}


def layered_tower(
    kind: str, given: Mapping[str, Any], shapes: Shapes, path: Path, *,
    select_layer: Any, select_feature: str,
) -> VisionSpec:  # fmt: skip
    """The tower's Spec. Sizes are read from the tensors; a config that says otherwise is an error.

    Args:
        kind: ``clip``, ``siglip``, ``siglip_normed`` or ``idefics3``.
        given: what a config says of the tower, in the terms of ``CLIPVisionConfig``; heads of 64, quick GELU and
            CLIP's epsilon, which no tensor tells, where it does not say.
        shapes: of the tower's tensors.
        path: the file that says so, for messages.
        select_layer, select_feature: which hidden state the features are, as the config says it.

    Raises:
        CheckpointError: config and tensors differ, or a size is no number.
        Unsupported: a feature that is selected otherwise than known.
    """
    sizes = _measured(kind, shapes, path)
    for key, value in sizes.items():
        if key in given and given[key] != value and not _same_grid(key, given, sizes):
            raise CheckpointError(f"{path}: vision_config.{key} is {given[key]}, the tensors say {value}", _CURE)
    if select_feature not in ("patch", "cls_patch"):
        raise Unsupported(f"{path}: mm_vision_select_feature {select_feature!r} is unknown", "known: patch, cls_patch")
    if not isinstance(select_layer, int):
        raise Unsupported(
            f"{path}: features of several layers ({select_layer}) are not known", "known: one layer, as -2"
        )
    try:
        spec = VisionSpec(
            kind=kind,
            image_size=whole(given, "image_size", sizes["image_size"]),
            patch_size=sizes["patch_size"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_layers=sizes["num_hidden_layers"],
            num_heads=whole(given, "num_attention_heads", max(1, sizes["hidden_size"] // _HEAD)),
            hidden_act=str(given.get("hidden_act", VisionSpec.hidden_act)),
            layer_norm_eps=float(given.get("layer_norm_eps", VisionSpec.layer_norm_eps)),
            select_layer=select_layer,
            select_feature=select_feature,
            section=_rest(kind, given),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: vision_config is garbled ({error})", "use the published config.json") from error
    if spec.num_heads < 1 or spec.hidden_size % spec.num_heads:
        raise CheckpointError(f"{path}: a tower {spec.hidden_size} wide cannot have {spec.num_heads} heads", _CURE)
    if not 0 <= spec.used_layers <= spec.num_layers:
        raise CheckpointError(f"{path}: layer {spec.select_layer} of {spec.num_layers} is selected", _CURE)
    return spec


def _rest(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What else is said in the terms of the tower's class."""
    known = defaults(_MODEL_TYPES[kind]).keys() - {*READ, "model_type"}
    return {key: value for key, value in given.items() if key in known}


def _measured(kind: str, shapes: Shapes, path: Path) -> dict[str, int]:
    names = (
        "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"
    )  # fmt: skip
    missing = [name for name in names if not shapes.get(name)]
    if missing:
        raise CheckpointError(f"{path.parent}: the vision tower lacks the tensor {missing[0]}", "download it again")
    patch, positions, inner = (shapes[name] for name in names)
    if len(patch) != 4:
        raise CheckpointError(f"{path.parent}: {names[0]} has the shape {list(patch)}", f"it is no {kind} tower")
    layers = [re.match(r"encoder\.layers\.(\d+)\.", name) for name in shapes]
    return {
        "hidden_size": patch[0],
        "patch_size": patch[2],
        "image_size": round((positions[0] - _CLASS_TOKENS[kind]) ** 0.5) * patch[2],
        "intermediate_size": inner[0],
        "num_hidden_layers": 1 + max(int(layer[1]) for layer in layers if layer),
    }


def _same_grid(key: str, given: Mapping[str, Any], sizes: dict[str, int]) -> bool:
    """A patch that does not divide the image leaves a border out: 384 pixels and 378 give the same patches."""
    value, patch = given[key], sizes["patch_size"]
    return key == "image_size" and isinstance(value, int) and value // patch == sizes["image_size"] // patch
