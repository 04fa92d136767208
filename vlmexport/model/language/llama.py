"""Llama and its kin (MobileLLaMA, Vicuna, SmolLM), as transformers has it."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vlmexport.checkpoint import LanguageSpec

LAYERS = "model.layers."


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
