"""BERT and TinyBERT, as transformers has them, in a language model's place: an encoder that answers with a class.

Visual tokens and question go through the encoder once; the first position (BOS, where BERT has ``[CLS]``) is pooled,
and a linear layer gives each answer of ``LanguageSpec.classes`` its logit. Positions, token types (all are the first)
and the norm after them belong to the encoder: what goes in are rows of the word table, and visual tokens among them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.demo.questions import NUMBERS
from vlmexport.demo.scenes import BACKGROUNDS
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.protocols import GgufLanguage

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "bert:tiny"
LAYERS = "bert.encoder.layer."
TABLES = tuple(f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
GENERATES = False
FUSED = False

ANSWERS = ("yes", "no", *NUMBERS, *BACKGROUNDS)
"""Classes of a new design: what the demo's questions are answered with that have few answers."""

TYPES = 2
"""Rows of the table of token types, in every published BERT."""

_ACTIVATIONS = ("gelu", "relu")
_TINY = LanguageSpec("bert", 1536, 128, 512, 2, 4, 4, 32, 1e-12, 0.0, 512, False, "gelu", classes=ANSWERS)
_BASE = replace(_TINY, vocab_size=30522, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12,
                num_kv_heads=12, head_dim=64)  # fmt: skip
_VARIANTS = {
    "tiny": _TINY,
    "tinybert4": replace(_BASE, hidden_size=312, intermediate_size=1200, num_layers=4, head_dim=26),
    "tinybert6": replace(_BASE, num_layers=6),
    "base": _BASE,
}
"""One for tests; TinyBERT's two (arXiv:1909.10351, section 4.1: 14.5M and 67M parameters) and BERT base
(arXiv:1810.04805: 110M), all with 512 positions."""


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("bert", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``BertForSequenceClassification``."""
    plugins.check_activation(spec, _ACTIVATIONS)
    plugins.check_heads(spec)
    width, inner = spec.hidden_size, spec.intermediate_size
    matrices = {"bert.pooler.dense": (width, width), "classifier": (len(spec.classes), width)}
    norms = ["bert.embeddings.LayerNorm"]
    for i in range(spec.num_layers):
        place = f"{LAYERS}{i}"
        matrices |= {f"{place}.attention.self.{name}": (width, width) for name in ("query", "key", "value")} | {
            f"{place}.attention.output.dense": (width, width), f"{place}.intermediate.dense": (inner, width),
            f"{place}.output.dense": (width, inner),
        }  # fmt: skip
        norms += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    rows = (spec.vocab_size, spec.max_positions, TYPES)
    tables = {name: (count, width) for name, count in zip(TABLES, rows, strict=True)}
    return tables | with_biases(matrices, dict.fromkeys(norms, width))


def with_biases(matrices: dict[str, tuple[int, int]], norms: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of linear layers and norms, by path: weights and biases."""
    found: dict[str, tuple[int, ...]] = {}
    for path, shape in matrices.items():
        found |= {f"{path}.weight": shape, f"{path}.bias": shape[:1]}
    for path, width in norms.items():
        found |= {f"{path}.weight": (width,), f"{path}.bias": (width,)}
    return found


def settings(spec: LanguageSpec) -> dict[str, Any]:
    """A Spec in the terms of ``BertConfig``, and of the configurations that share them."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "hidden_act": spec.hidden_act,
        "layer_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": spec.max_positions,
        "type_vocab_size": TYPES,
        "num_labels": len(spec.classes),
        "attn_implementation": "eager",
    }


def build(spec: LanguageSpec) -> nn.Module:
    """``BertForSequenceClassification`` with parameters on the meta device, positions and token types filled."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        module = BertForSequenceClassification(BertConfig(**settings(spec)))
    embeddings = module.bert.embeddings
    embeddings.position_ids = torch.arange(spec.max_positions)[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    return cast("nn.Module", module)


def gguf(spec: LanguageSpec) -> GgufLanguage:
    """llama.cpp has BERT for embeddings and for ranking texts; nothing in it asks one about an image."""
    raise Unsupported(
        f"GGUF cannot hold a {spec.kind} that answers with a class: llama.cpp generates text",
        "use an ONNX bundle: vlmexport onnx",
    )
