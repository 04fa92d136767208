"""Llama and its kin (MobileLLaMA, Vicuna, SmolLM), as transformers has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.model import plugins
from vlmexport.model.protocols import GgufLanguage
from vlmexport.source import shapes as expected

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "llama:tiny"
LAYERS = "model.layers."
TABLES = ("model.embed_tokens.weight",)
GENERATES = True
FUSED = True
_TINY = LanguageSpec("llama", 1536, 256, 512, 2, 4, 4, 64, 1e-5, 10000.0, 2048, False)
_VARIANTS = {
    "tiny": _TINY,
    "1.4b": replace(_TINY, vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_layers=24, num_heads=16,
                    num_kv_heads=16, head_dim=128, rms_norm_eps=1e-6),
    "2.7b": replace(_TINY, vocab_size=32000, hidden_size=2560, intermediate_size=6912, num_layers=32, num_heads=32,
                    num_kv_heads=32, head_dim=80, rms_norm_eps=1e-6),
    "7b": replace(_TINY, vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32,
                  num_kv_heads=32, head_dim=128),
}  # fmt: skip
"""One for tests, MobileLLaMA's two (arXiv:2312.16886, table 1) and Vicuna's, all with 2048 positions."""

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("llama", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``LlamaForCausalLM``."""
    plugins.check_activation(spec, ("silu",))
    return expected.llama(spec)


def settings(spec: LanguageSpec) -> dict[str, Any]:
    """A Spec in the terms of ``LlamaConfig``, and of the configurations that share them; beside it what else the
    published section says."""
    return spec.section | {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": spec.hidden_act,
        "rms_norm_eps": spec.rms_norm_eps,
        "rope_parameters": {"rope_theta": spec.rope_theta, **(spec.rope_scaling.facts() if spec.rope_scaling else {})},
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "attn_implementation": "eager",
    }


def build(spec: LanguageSpec) -> nn.Module:
    """``LlamaForCausalLM`` with parameters on the meta device, rotary frequencies filled."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**settings(spec))
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
    module.model.rotary_emb = LlamaRotaryEmbedding(config)
    return cast("nn.Module", module)


def gguf(spec: LanguageSpec) -> GgufLanguage:
    """llama.cpp's ``llama``: it turns neighbouring values of a query or key by one angle, and reads from a tensor what
    Llama 3 divides frequencies by."""
    scaling = spec.rope_scaling
    made: dict[str, tuple[float, ...]] = {}
    fields: dict[str, tuple[str, float | str]] = {
        "attention.layer_norm_rms_epsilon": ("f32", spec.rms_norm_eps),
        "attention.key_length": ("u32", spec.head_dim),
        "attention.value_length": ("u32", spec.head_dim),
        "rope.dimension_count": ("u32", spec.head_dim),
        "rope.freq_base": ("f32", spec.rope_theta),
    }
    if scaling and scaling.rope_type == "linear":
        fields |= {"rope.scaling.type": ("str", "linear"), "rope.scaling.factor": ("f32", scaling.factor)}
    elif scaling:
        made["rope_freqs.weight"] = scaling.divisors(spec.rope_theta, spec.head_dim)
    heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}
    return GgufLanguage("llama", _OUTSIDE, _INSIDE, fields, heads, made)
