"""SigLIP's vision transformer, as transformers has it: no class token, no norm before the first layer.

Source: Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins

EXAMPLE = "siglip:tiny"
CLIENT_TYPE = "siglip_vision_model"
"""What transformers.js and transformers call it in config.json."""

_HALF: Colour = (0.5, 0.5, 0.5)
_BASE = VisionSpec("siglip", 224, 16, 768, 3072, 12, 12, "gelu_pytorch_tanh", 1e-6)
_VARIANTS = {
    "b16-224": _BASE,
    "b16-384": replace(_BASE, image_size=384),
    "l16-256": replace(_BASE, image_size=256, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16),
    "so400m-384": replace(_BASE, image_size=384, patch_size=14, hidden_size=1152, intermediate_size=4304,
                          num_layers=27, num_heads=16),
    "tiny": replace(_BASE, image_size=96, hidden_size=64, intermediate_size=128, num_layers=3, num_heads=2),
}  # fmt: skip
"""Four that Google published, and one for tests. so400m leaves a border of six pixels out, as published."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``; other image sizes take other position embeddings."""
    name = variant or next(iter(_VARIANTS))
    if name not in _VARIANTS:
        raise plugins.unknown_variant(kind, name, _VARIANTS)
    if image_size is None:
        return _VARIANTS[name]
    return plugins.check_image_size(replace(_VARIANTS[name], image_size=image_size))


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """A half, both."""
    return _HALF, _HALF


def layers(spec: VisionSpec) -> str:
    """``encoder.layers.``"""
    return "encoder.layers."


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """The norm after the last layer (features are hidden states), and the pooling head, which is not built."""
    return ("post_layernorm.", "head.")


def build(spec: VisionSpec) -> nn.Module:
    """``SiglipVisionModel`` without its head, parameters on the meta device."""
    config = SiglipVisionConfig(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        hidden_act=spec.hidden_act,
        layer_norm_eps=spec.layer_norm_eps,
        attn_implementation="eager",
        vision_use_head=False,
    )
    with torch.device("meta"):
        module = SiglipVisionModel(config)
    module.embeddings.register_buffer("position_ids", torch.arange(spec.grid**2)[None], persistent=False)
    return cast(nn.Module, module)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """Hidden states of the selected layer; layers after it are not computed."""
    if spec.select_feature != "patch":
        raise Unsupported(f"siglip has no class token, select_feature is {spec.select_feature!r}", "use patch")
    tower = cast(SiglipVisionModel, module)
    hidden = tower.embeddings(pixel_values)
    for layer in tower.encoder.layers[: spec.used_layers]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    return cast(torch.Tensor, hidden)
