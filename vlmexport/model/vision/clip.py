"""CLIP's vision transformer, as transformers has it. Source: Radford et al. 2021, arXiv:2103.00020."""

from __future__ import annotations

from transformers import CLIPVisionConfig, CLIPVisionModel

from vlmexport.checkpoint.spec import CLIP_MEAN, CLIP_STD, Colour, VisionSpec
from vlmexport.model import plugins
from vlmexport.model.transformer_tower import TransformerTower

EXAMPLE = "clip:tiny"
_VARIANTS = {
    "l14-336": VisionSpec("clip", 336, 14, 1024, 4096, 24, 16),
    "l14": VisionSpec("clip", 224, 14, 1024, 4096, 24, 16),
    "b16": VisionSpec("clip", 224, 16, 768, 3072, 12, 12),
    "b32": VisionSpec("clip", 224, 32, 768, 3072, 12, 12),
    "tiny": VisionSpec("clip", 336, 14, 64, 128, 3, 2),
}
"""OpenAI's four, table 20 of the paper, and one for tests; the first is MobileVLM's."""


_TOWER = TransformerTower(
    CLIPVisionModel, CLIPVisionConfig, ("post_layernorm.",), class_token=True, norm_before="pre_layrnorm"
)
layers, unused, build, features = _TOWER.layers, _TOWER.unused, _TOWER.build, _TOWER.features


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """CLIP's."""
    return CLIP_MEAN, CLIP_STD
