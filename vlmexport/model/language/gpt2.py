"""GPT-2, as transformers has it: learned positions, LayerNorm and biases, query, key and value in one matrix.

Its matrices are those of linear layers, rows first; GPT-2's own checkpoints hold them transposed (``Conv1D``).

``tutorial`` is the decoder of from-scratch tutorials for vision-language models. Such a tutorial writes one matrix for
each head, without biases, and divides attention by the root of the whole width: that is GPT-2 with the heads side by
side in ``c_attn``, its biases zero and its queries times the root of head width over width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.model import plugins
from vlmexport.model.protocols import GgufLanguage

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "gpt2:tiny"
LAYERS = "transformer.h."
TABLES = ("transformer.wte.weight", "transformer.wpe.weight")
GENERATES = True
FUSED = False
CLIENT_TYPE = "llama"
"""Clients read the sizes of the cache by Llama's names; of ``gpt2`` they expect others."""

_ACTIVATIONS = ("gelu_new", "gelu")
_TINY = LanguageSpec("gpt2", 1536, 256, 1024, 2, 4, 4, 64, 1e-5, 0.0, 1024, True, "gelu_new")
_VARIANTS = {
    "tiny": _TINY,
    "82m": replace(_TINY, vocab_size=50257, hidden_size=768, intermediate_size=3072, num_layers=6, num_heads=12,
                   num_kv_heads=12),
    "124m": replace(_TINY, vocab_size=50257, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12,
                    num_kv_heads=12),
    "355m": replace(_TINY, vocab_size=50257, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16,
                    num_kv_heads=16),
    "tutorial": replace(_TINY, hidden_size=512, intermediate_size=2048, num_layers=8, num_heads=8, num_kv_heads=8,
                        tie_word_embeddings=False, hidden_act="gelu"),
}  # fmt: skip
"""One for tests; DistilGPT2 (arXiv:1910.01108) and the two small ones of Radford et al. 2019 (table 2); the tutorial's,
as wide as its vision encoder. All have 1024 positions."""


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("gpt2", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``GPT2LMHeadModel`` with linear layers."""
    plugins.check_activation(spec, _ACTIVATIONS)
    plugins.check_heads(spec)
    width, inner = spec.hidden_size, spec.intermediate_size
    matrices = {
        "attn.c_attn": (3 * width, width), "attn.c_proj": (width, width), "mlp.c_fc": (inner, width),
        "mlp.c_proj": (width, inner),
    }  # fmt: skip
    tokens, positions = TABLES
    found: dict[str, tuple[int, ...]] = {
        tokens: (spec.vocab_size, width), positions: (spec.max_positions, width),
        "lm_head.weight": (spec.vocab_size, width),
    }  # fmt: skip
    norms = ["transformer.ln_f"]
    for i in range(spec.num_layers):
        norms += [f"{LAYERS}{i}.ln_1", f"{LAYERS}{i}.ln_2"]
        for name, shape in matrices.items():
            found |= {f"{LAYERS}{i}.{name}.weight": shape, f"{LAYERS}{i}.{name}.bias": shape[:1]}
    return found | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def build(spec: LanguageSpec) -> nn.Module:
    """``GPT2LMHeadModel`` with parameters on the meta device, its ``Conv1D`` layers as linear ones."""
    import torch
    from torch import nn
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    config = GPT2Config(
        vocab_size=spec.vocab_size,
        n_embd=spec.hidden_size,
        n_inner=spec.intermediate_size,
        n_layer=spec.num_layers,
        n_head=spec.num_heads,
        n_positions=spec.max_positions,
        layer_norm_epsilon=spec.rms_norm_eps,
        activation_function=spec.hidden_act,
        tie_word_embeddings=spec.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    )
    with torch.device("meta"):
        module = GPT2LMHeadModel(config)
        for name, layer in list(module.named_modules()):
            if isinstance(layer, Conv1D):
                module.set_submodule(name, nn.Linear(layer.nx, layer.nf))
    return cast(nn.Module, module)


def gguf(spec: LanguageSpec) -> GgufLanguage:
    """llama.cpp's ``gpt2``, which adds positions to embeddings as it does to tokens.

    It looks GELU up in a table of f16 values of the tanh form: logits are 3e-4 of their norm away, whichever form the
    model has.
    """
    outside = {
        "transformer.wte.weight": "token_embd.weight", "transformer.wpe.weight": "position_embd.weight",
        "transformer.ln_f.weight": "output_norm.weight", "transformer.ln_f.bias": "output_norm.bias",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    inside = {
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
        "ln_1": "attn_norm", "ln_2": "ffn_norm",
    }  # fmt: skip
    return GgufLanguage("gpt2", outside, inside, {"attention.layer_norm_epsilon": ("f32", spec.rms_norm_eps)})
