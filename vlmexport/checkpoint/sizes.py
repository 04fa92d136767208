"""Sizes of tower and language model: what the config says, what the tensors say, and that they agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import flag, whole
from vlmexport.checkpoint.rope import read_scaling
from vlmexport.checkpoint.settings import Settings
from vlmexport.checkpoint.spec import LanguageSpec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError, Unsupported

_CURE = "config and weights belong to different models: fix one of them"
_HEAD = 64
"""Width of a head in every published CLIP."""


@dataclass(frozen=True)
class Pixels:
    """How a preprocessor makes pixels; None where it does not say."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    aspect_ratio: str | None = None
    side: int | None = None


def vision(
    settings: Settings, given: Mapping[str, Any], tensors: dict[str, LazyTensor], pixels: Pixels, path: Path
) -> VisionSpec:
    """The tower's Spec. Sizes are read from the tensors; a config that says otherwise is an error.

    Args:
        given: what a config says of the tower, in the terms of ``CLIPVisionConfig``; heads of 64, quick GELU and
            CLIP's epsilon, which no tensor tells, where it does not say.
        path: the file that says so, for messages.

    Raises:
        CheckpointError: config and tensors differ, or a size is no number.
        Unsupported: a feature that is selected otherwise than known.
    """
    sizes = _measured(tensors, path)
    for key, value in sizes.items():
        if key in given and given[key] != value and not _same_grid(key, given, sizes):
            raise CheckpointError(f"{path}: vision_config.{key} is {given[key]}, the tensors say {value}", _CURE)
    if settings.select_feature not in ("patch", "cls_patch"):
        raise Unsupported(
            f"{path}: mm_vision_select_feature {settings.select_feature!r} is unknown", "known: patch, cls_patch"
        )
    if not isinstance(settings.select_layer, int):
        raise Unsupported(
            f"{path}: features of several layers ({settings.select_layer}) are not known", "known: one layer, as -2"
        )
    try:
        spec = VisionSpec(
            kind=str(given.get("kind", "clip")),
            image_size=whole(given, "image_size", sizes["image_size"]),
            patch_size=sizes["patch_size"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_layers=sizes["num_hidden_layers"],
            num_heads=whole(given, "num_attention_heads", max(1, sizes["hidden_size"] // _HEAD)),
            hidden_act=str(given.get("hidden_act", VisionSpec.hidden_act)),
            layer_norm_eps=float(given.get("layer_norm_eps", VisionSpec.layer_norm_eps)),
            image_mean=pixels.mean or VisionSpec.image_mean,
            image_std=pixels.std or VisionSpec.image_std,
            select_layer=settings.select_layer,
            select_feature=settings.select_feature,
            aspect_ratio=settings.aspect_ratio or pixels.aspect_ratio or "crop",
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: vision_config is garbled ({error})", "use the published config.json") from error
    if spec.num_heads < 1 or spec.hidden_size % spec.num_heads:
        raise CheckpointError(f"{path}: a tower {spec.hidden_size} wide cannot have {spec.num_heads} heads", _CURE)
    if not 0 <= spec.used_layers <= spec.num_layers:
        raise CheckpointError(f"{path}: layer {spec.select_layer} of {spec.num_layers} is selected", _CURE)
    if pixels.side is not None and pixels.side != spec.image_size:
        raise CheckpointError(
            f"{path.parent}: the preprocessor makes {pixels.side} pixels, the tower takes {spec.image_size}",
            "use the preprocessor_config.json that was published with it",
        )
    return spec


def _measured(tensors: dict[str, LazyTensor], path: Path) -> dict[str, int]:
    names = (
        "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight"
    )  # fmt: skip
    missing = [name for name in names if name not in tensors or not tensors[name].shape]
    if missing:
        raise CheckpointError(f"{path.parent}: the vision tower lacks the tensor {missing[0]}", "download it again")
    patch, positions, inner = (tensors[name].shape for name in names)
    if len(patch) != 4:
        raise CheckpointError(f"{path.parent}: {names[0]} has the shape {list(patch)}", "it is no CLIP tower")
    layers = [re.match(r"encoder\.layers\.(\d+)\.", name) for name in tensors]
    return {
        "hidden_size": patch[0],
        "patch_size": patch[2],
        "image_size": round((positions[0] - 1) ** 0.5) * patch[2],
        "intermediate_size": inner[0],
        "num_hidden_layers": 1 + max(int(layer[1]) for layer in layers if layer),
    }


def _same_grid(key: str, given: Mapping[str, Any], sizes: dict[str, int]) -> bool:
    """A patch that does not divide the image leaves a border out: 384 pixels and 378 give the same patches."""
    value, patch = given[key], sizes["patch_size"]
    return key == "image_size" and isinstance(value, int) and value // patch == sizes["image_size"] // patch


def llama(text: Mapping[str, Any], path: Path) -> LanguageSpec:
    """The Spec of a published layout's language model; errors as ``language``."""
    if text.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{path}: a language model with {text['hidden_act']!r} is not known", "known: silu")
    return language(text, path)


def language(text: Mapping[str, Any], path: Path, kind: str = "llama") -> LanguageSpec:
    """A language model's Spec; ``text`` is in the terms of ``LlamaConfig``.

    Raises:
        CheckpointError: a size is missing or no number.
        Unsupported: something that would change the result and is not known.
    """
    theta = text.get("rope_theta")
    try:
        scaling, rope = read_scaling(text, path), text.get("rope_parameters") or {}
        hidden, heads = whole(text, "hidden_size"), whole(text, "num_attention_heads")
        spec = LanguageSpec(
            kind=kind,
            vocab_size=whole(text, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=whole(text, "intermediate_size"),
            num_layers=whole(text, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=whole(text, "num_key_value_heads", heads),
            head_dim=whole(text, "head_dim", 0) or hidden // heads,
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", 10000.0) if theta is None else theta),
            max_positions=whole(text, "max_position_embeddings", 2048),
            tie_word_embeddings=flag(text, "tie_word_embeddings"),
            hidden_act=str(text.get("hidden_act", LanguageSpec.hidden_act)),
            rope_scaling=scaling,
            classes=_classes(text.get("classes", [])),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}", "use the published config.json") from error
    sizes = (spec.vocab_size, hidden, spec.intermediate_size, spec.num_layers, heads, spec.num_kv_heads, spec.head_dim)
    if min(sizes) < 1 or heads % spec.num_kv_heads:
        raise CheckpointError(
            f"{path}: {heads} heads, {spec.num_kv_heads} of keys, in {spec.num_layers} layers {hidden} wide cannot be",
            "use the published config.json",
        )
    return spec


def _classes(answers: object) -> tuple[str, ...]:
    """A classifier's answers."""
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise TypeError("classes (a list of texts)")
    return tuple(answers)
