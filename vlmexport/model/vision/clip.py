"""CLIP's vision transformer, as transformers has it. Source: Radford et al. 2021, arXiv:2103.00020."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlmexport.checkpoint.spec import CLIP_MEAN, CLIP_STD, Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins

EXAMPLE = "clip:tiny"
_VARIANTS = {
    "l14-336": VisionSpec("clip", 336, 14, 1024, 4096, 24, 16),
    "l14": VisionSpec("clip", 224, 14, 1024, 4096, 24, 16),
    "b16": VisionSpec("clip", 224, 16, 768, 3072, 12, 12),
    "b32": VisionSpec("clip", 224, 32, 768, 3072, 12, 12),
    "tiny": VisionSpec("clip", 336, 14, 64, 128, 3, 2),
}
"""OpenAI's four, table 20 of the paper, and one for tests; the first is MobileVLM's."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``; other image sizes take other position embeddings."""
    name = variant or next(iter(_VARIANTS))
    if name not in _VARIANTS:
        raise plugins.unknown_variant(kind, name, _VARIANTS)
    spec = _VARIANTS[name]
    return plugins.check_image_size(replace(spec, image_size=image_size or spec.image_size))


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """CLIP's."""
    return CLIP_MEAN, CLIP_STD


def layers(spec: VisionSpec) -> str:
    """``encoder.layers.``"""
    return "encoder.layers."


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """The norm after the last layer: features are hidden states."""
    return ("post_layernorm.",)


def build(spec: VisionSpec) -> nn.Module:
    """``CLIPVisionModel`` with parameters on the meta device."""
    config = CLIPVisionConfig(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_act=spec.hidden_act,
        layer_norm_eps=spec.layer_norm_eps,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        module = CLIPVisionModel(config)
    positions = torch.arange(spec.grid**2 + 1)[None]
    module.embeddings.register_buffer("position_ids", positions, persistent=False)
    return cast(nn.Module, module)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """Hidden states of the selected layer; layers after it are not computed.

    Args:
        pixel_values: f32 [images, 3, height, width].

    Returns:
        f32 [images, patches, vision width]; one more for the class token, first, with ``cls_patch``.
    """
    tower = cast(CLIPVisionModel, module)
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[: spec.used_layers]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    if spec.select_feature == "patch":
        return cast(torch.Tensor, hidden[:, 1:])
    if spec.select_feature == "cls_patch":
        return cast(torch.Tensor, hidden)
    raise Unsupported(f"mm_vision_select_feature {spec.select_feature!r} is unknown", "known: patch, cls_patch")
