"""SigLIP's vision transformer, as transformers has it: no class token, no norm before the first layer.

Source: Zhai et al. 2023, arXiv:2303.15343.
"""

from __future__ import annotations

from dataclasses import replace

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.model import plugins
from vlmexport.model.transformer_tower import TransformerTower

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


_TOWER = TransformerTower(
    "SiglipVisionModel", "SiglipVisionConfig", ("post_layernorm.", "head."), options={"vision_use_head": False}
)
layers, unused, build, features = _TOWER.layers, _TOWER.unused, _TOWER.build, _TOWER.features


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """A half, both."""
    return _HALF, _HALF
