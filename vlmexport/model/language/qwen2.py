"""Qwen2 and Qwen2.5, as transformers has them: Llama's layers with biases of query, key and value."""

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

EXAMPLE = "qwen2:tiny"
LAYERS, TABLES, GENERATES, FUSED = llama.LAYERS, llama.TABLES, True, True
_TINY = LanguageSpec("qwen2", 1536, 256, 512, 2, 4, 2, 64, 1e-6, 1e6, 2048, True)
_VARIANTS = {
    "tiny": _TINY,
    "0.5b": replace(_TINY, vocab_size=151936, hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14,
                    max_positions=32768),
    "1.5b": replace(_TINY, vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12,
                    head_dim=128, max_positions=32768),
}  # fmt: skip
"""One for tests, and the two small ones of arXiv:2407.10671 (table 1), with the positions of arXiv:2412.15115: 0.49B
and 1.54B parameters, heads tied, rows of the embedding rounded up to 151,936."""


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("qwen2", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``Qwen2ForCausalLM``."""
    found = llama.shapes(spec)
    weights = {name: shape for name, shape in found.items() if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")}
    return found | {name.replace(".weight", ".bias"): (rows,) for name, (rows, _) in weights.items()}


def build(spec: LanguageSpec) -> nn.Module:
    """``Qwen2ForCausalLM`` with parameters on the meta device, rotary frequencies filled."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    config = Qwen2Config(**llama.settings(spec))
    with torch.device("meta"):
        module = Qwen2ForCausalLM(config)
    module.model.rotary_emb = Qwen2RotaryEmbedding(config)
    return cast("nn.Module", module)


def gguf(spec: LanguageSpec) -> GgufLanguage:
    """llama.cpp's ``qwen2``. It turns values half a head apart, as transformers does: rows stay in their order."""
    held = llama.gguf(spec)
    if held.made:
        raise Unsupported("llama.cpp's qwen2 leaves out Llama 3's scaling of rotary embeddings", "use an ONNX bundle")
    return replace(held, architecture="qwen2", heads={})
