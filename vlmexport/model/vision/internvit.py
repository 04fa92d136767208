"""InternViT of 300M, as transformers has it for InternVL: layer scale, a class token that features leave out, no last
norm.

Source: Chen et al. 2024, arXiv:2404.16821. That of 6B has another norm, and norms queries and keys.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.families.reading.internvl import COLOURS
from vlmexport.model import plugins
from vlmexport.model.protocols import HYBRID, GgufTower

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "internvit:tiny"
_BASE = VisionSpec("internvit", 448, 14, 1024, 4096, 24, 16, "gelu", 1e-6, select_layer=-1)
_VARIANTS = {
    "300m": _BASE,
    "tiny": replace(_BASE, image_size=112, hidden_size=64, intermediate_size=128, num_layers=3, num_heads=2),
}
"""That of InternVL2 to 3.5 up to 8B, and one for tests."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """ImageNet's."""
    return COLOURS


def layers(spec: VisionSpec) -> str:
    """``encoder.layer.``"""
    return "encoder.layer."


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """All is used."""
    return ()


def build(spec: VisionSpec) -> nn.Module:
    """``InternVLVisionModel`` with parameters on the meta device; what else the published section says goes into its
    config. Queries, keys and values have biases where it does not say."""
    import torch
    from transformers import InternVLVisionConfig, InternVLVisionModel

    config = InternVLVisionConfig(**{"attention_bias": True} | spec.section | {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "image_size": (spec.image_size, spec.image_size),
        "patch_size": (spec.patch_size, spec.patch_size),
        "hidden_act": spec.hidden_act,
        "layer_norm_eps": spec.layer_norm_eps,
        "attn_implementation": "eager",
    })  # fmt: skip
    with torch.device("meta"):
        return cast("nn.Module", InternVLVisionModel(config))


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """Hidden states of the selected layer, of the patches; layers after it are not computed.

    Raises:
        Unsupported: features with the class token.
    """
    if spec.select_feature != "patch":
        raise Unsupported(f"internvit has features of patches, not {spec.select_feature!r}", "use patch")
    tower = cast(Any, module)
    hidden = tower.embeddings(pixel_values)
    for layer in tower.encoder.layer[: spec.used_layers]:
        hidden = layer(hidden)
    return cast("torch.Tensor", hidden[:, 1:])


_POSITIONS, _CLASS = "v.position_embd.weight", "v.class_embd"
_OUTSIDE = {
    "embeddings.cls_token": _CLASS, "embeddings.position_embeddings": _POSITIONS,
    "embeddings.patch_embeddings.projection.weight": "v.patch_embd.weight",
    "embeddings.patch_embeddings.projection.bias": "v.patch_embd.bias",
}  # fmt: skip
_INSIDE = {
    "attention.q_proj": "attn_q", "attention.k_proj": "attn_k", "attention.v_proj": "attn_v",
    "attention.projection_layer": "attn_out", "layernorm_before": "ln1", "layernorm_after": "ln2", "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}  # fmt: skip


def gguf(spec: VisionSpec) -> GgufTower:
    """As libmtmd's, which puts the class token behind the patches and gives every row of the table to the row beside
    the one that it belongs to: here the first row of the table, the class token's, is the last.

    Raises:
        Unsupported: not every layer is in use.
    """
    if spec.used_layers != spec.num_layers or spec.select_feature != "patch":
        raise Unsupported(f"libmtmd cannot stop at hidden state {spec.used_layers}", HYBRID)
    scales = {
        f"encoder.layer.{layer}.lambda_{number}": f"v.blk.{layer}.ls{number}.weight"
        for layer in range(spec.num_layers) for number in (1, 2)
    }  # fmt: skip
    rows = {_POSITIONS: [*range(1, spec.grid**2 + 1), 0]}
    kernels = frozenset({"v.patch_embd.weight"})
    return GgufTower(("internvl",), _OUTSIDE | scales, _INSIDE, frozenset({_POSITIONS}), rows=rows, kernels=kernels)
