"""CLIP's vision transformer, as transformers has it. Source: Radford et al. 2021, arXiv:2103.00020."""

from __future__ import annotations

from vlmexport.checkpoint.spec import CLIP_MEAN, CLIP_STD, Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.protocols import HYBRID, GgufTower
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
    "CLIPVisionModel", "CLIPVisionConfig", ("post_layernorm.",), class_token=True, norm_before="pre_layrnorm"
)
layers, unused, build, features = _TOWER.layers, _TOWER.unused, _TOWER.build, _TOWER.features


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """CLIP's."""
    return CLIP_MEAN, CLIP_STD


_OUTSIDE = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
_WRONG = (
    "stock libmtmd computes this tower wrong (llama.cpp #25814); vlmexport repairs that when it runs the bundle, other "
    "programs need the patch of docs/llama-cpp.md, or a hybrid (--vision onnx) in place of this bundle"
)


def gguf(spec: VisionSpec) -> GgufTower:
    """As LLaVA's. ``feature_layer`` names the last layer in use: libmtmd otherwise leaves one more out.
    ``post_layernorm`` is left out, because libmtmd would apply it."""
    if spec.select_feature != "patch":
        raise Unsupported(f"libmtmd leaves out the class token, mm_vision_select_feature is {spec.select_feature!r}",
                          HYBRID)  # fmt: skip
    if not 0 < spec.used_layers <= spec.num_layers:
        raise Unsupported(f"libmtmd cannot stop at hidden state {spec.used_layers}", HYBRID)
    return GgufTower(
        ("mlp", "ldp", "ldpv2"), _OUTSIDE, _TOWER.gguf_inside, frozenset({"v.position_embd.weight", "v.class_embd"}),
        {"clip.vision.feature_layer": ("i32[]", [spec.used_layers])}, (_WRONG,),
    )  # fmt: skip
