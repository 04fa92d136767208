"""Llama and its kin (MobileLLaMA, Vicuna, SmolLM), as transformers has it."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlmexport.checkpoint import LanguageSpec
from vlmexport.model import plugins

LAYERS = "model.layers."
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


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    name = variant or next(iter(_VARIANTS))
    if name not in _VARIANTS:
        raise plugins.unknown_variant("llama", name, _VARIANTS)
    return _VARIANTS[name]


def config(spec: LanguageSpec) -> LlamaConfig:
    """The transformers configuration of a Spec."""
    return LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        rms_norm_eps=spec.rms_norm_eps,
        rope_theta=spec.rope_theta,
        max_position_embeddings=spec.max_positions,
        tie_word_embeddings=spec.tie_word_embeddings,
        attn_implementation="eager",
    )


def build(spec: LanguageSpec) -> nn.Module:
    """``LlamaForCausalLM`` with parameters on the meta device, rotary frequencies filled."""
    with torch.device("meta"):
        module = LlamaForCausalLM(config(spec))
    module.model.rotary_emb = LlamaRotaryEmbedding(config(spec))
    return cast(nn.Module, module)
