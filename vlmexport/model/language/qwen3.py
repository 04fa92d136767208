"""Qwen3, as transformers has it: Llama's layers, queries and keys normed head by head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.language import llama
from vlmexport.model.protocols import GgufLanguage

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "qwen3:tiny"
LAYERS, TABLES, GENERATES, FUSED = llama.LAYERS, llama.TABLES, True, True
_TINY = LanguageSpec("qwen3", 1536, 256, 512, 2, 4, 2, 32, 1e-6, 1e6, 2048, True)
_BASE = replace(_TINY, vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_layers=28, num_heads=16,
                num_kv_heads=8, head_dim=128, max_positions=40960)  # fmt: skip
_VARIANTS = {
    "tiny": _TINY,
    "0.6b": _BASE,
    "1.7b": replace(_BASE, hidden_size=2048, intermediate_size=6144),
    "4b": replace(_BASE, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32),
}
"""One for tests, and the three small ones of arXiv:2505.09388 (table 1): 0.6B, 1.7B and 4B parameters, heads tied."""

_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("qwen3", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``Qwen3ForCausalLM``."""
    places = [f"{LAYERS}{layer}.{norm}.weight" for layer in range(spec.num_layers) for norm in _NORMS]
    return llama.shapes(spec) | dict.fromkeys(places, (spec.head_dim,))


def build(spec: LanguageSpec) -> nn.Module:
    """``Qwen3ForCausalLM`` with parameters on the meta device, rotary frequencies filled."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = Qwen3Config(**llama.settings(spec))
    with torch.device("meta"):
        module = Qwen3ForCausalLM(config)
    module.model.rotary_emb = Qwen3RotaryEmbedding(config)
    return cast("nn.Module", module)


def gguf(spec: LanguageSpec) -> GgufLanguage:
    """llama.cpp's ``qwen3``. It turns values half a head apart, as transformers does: rows stay in their order."""
    held = llama.gguf(spec)
    if held.made:
        raise Unsupported("llama.cpp's qwen3 leaves out Llama 3's scaling of rotary embeddings", "use an ONNX bundle")
    return replace(held, architecture="qwen3", heads={}, inside=held.inside | _NORMS)
