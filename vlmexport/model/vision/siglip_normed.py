"""SigLIP's vision transformer whose features go through the last norm, as nanoVLM has it: every layer is in use."""

from __future__ import annotations

from dataclasses import replace

from vlmexport.checkpoint.spec import HALF, Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.protocols import HYBRID, GgufTower
from vlmexport.model.transformer_tower import TransformerTower

EXAMPLE = "siglip_normed:tiny"
CLIENT_TYPE = "siglip_vision_model"
"""What transformers.js and transformers call it in config.json."""

_BASE = VisionSpec("siglip_normed", 224, 16, 768, 3072, 12, 12, "gelu_pytorch_tanh", 1e-6, select_layer=-1)
_VARIANTS = {
    "b16-224": _BASE,
    "b16-256": replace(_BASE, image_size=256),
    "b16-512": replace(_BASE, image_size=512),
    "tiny": replace(_BASE, image_size=96, hidden_size=64, intermediate_size=128, num_layers=3, num_heads=2),
}
"""Those of nanoVLM (222M, 450M, 230M and 460M), and one for tests."""

_TOWER = TransformerTower(
    "SiglipVisionModel", "SiglipVisionConfig", ("head.",), norm_after="post_layernorm",
    options={"vision_use_head": False},
)  # fmt: skip
layers, unused, build, features = _TOWER.layers, _TOWER.unused, _TOWER.build, _TOWER.features


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """A half, both."""
    return HALF, HALF


def gguf(spec: VisionSpec) -> GgufTower:
    """None.

    Raises:
        Unsupported: always.
    """
    raise Unsupported("no mmproj holds a pixel shuffle behind such a SigLIP: libmtmd cuts pictures another way", HYBRID)
