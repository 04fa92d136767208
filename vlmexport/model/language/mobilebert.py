"""MobileBERT, as transformers has it, in the place and with the head of ``bert``.

It is as deep as BERT large and thin: between layers the body is 512 wide, within a layer, behind its bottleneck, 128,
and there four feed-forward networks follow the attention. In place of layer norms it has an element-wise weight and
bias (NoNorm). Sun et al. 2020, arXiv:2004.02984.

``LanguageSpec.hidden_size`` is the width of the word table, and so of visual tokens, which a layer has behind its
bottleneck too. Each position goes in with both its neighbours (a convolution of three), visual tokens as words.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.model import plugins
from vlmexport.model.language import bert

if TYPE_CHECKING:
    from torch import nn

EXAMPLE = "mobilebert:tiny"
LAYERS = "mobilebert.encoder.layer."
TABLES = tuple(name.replace("bert.", "mobilebert.", 1) for name in bert.TABLES)
GENERATES = False
FUSED = False

RANDOM_NORM = 0.78
"""What random weights of norms are near. These do not normalise: near 1, the sums of 24 layers grow past 1e10."""

_BODY = 4
"""Width of the body over that of the bottleneck."""

_NETWORKS = 4
"""Feed-forward networks of a layer; the last one has BERT's names."""

_NEIGHBOURS = 3
"""Positions that go into one."""

_TINY = LanguageSpec("mobilebert", 1536, 64, 256, 2, 4, 4, 16, 1e-12, 0.0, 512, False, "relu", classes=bert.ANSWERS)
_VARIANTS = {
    "tiny": _TINY,
    "25m": replace(_TINY, vocab_size=30522, hidden_size=128, intermediate_size=512, num_layers=24, head_dim=32),
}
"""One for tests, and MobileBERT with the operational optimizations of the paper (table 1: 25.3M parameters), whose
pooler gives the first position as it is: 24,581,888 parameters in google/mobilebert-uncased."""

gguf = bert.gguf


def preset(variant: str) -> LanguageSpec:
    """A size of ``_VARIANTS``."""
    return plugins.variant_of("mobilebert", variant, _VARIANTS)


def shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    """Of ``MobileBertForSequenceClassification``."""
    plugins.check_activation(spec, ("relu",))
    plugins.check_heads(spec)
    width, inner, body = spec.hidden_size, spec.intermediate_size, _BODY * spec.hidden_size
    entry = "mobilebert.embeddings"
    matrices = {f"{entry}.embedding_transformation": (body, _NEIGHBOURS * width),
                "classifier": (len(spec.classes), body)}  # fmt: skip
    norms = {f"{entry}.LayerNorm": body}
    for i in range(spec.num_layers):
        place = f"{LAYERS}{i}"
        matrices |= {
            f"{place}.attention.self.query": (width, width), f"{place}.attention.self.key": (width, width),
            f"{place}.attention.self.value": (width, body), f"{place}.attention.output.dense": (width, width),
            f"{place}.bottleneck.input.dense": (width, body), f"{place}.bottleneck.attention.dense": (width, body),
            f"{place}.output.bottleneck.dense": (body, width),
        }  # fmt: skip
        narrow = ("attention.output", "bottleneck.input", "bottleneck.attention")
        norms |= {f"{place}.{name}.LayerNorm": width for name in narrow}
        norms[f"{place}.output.bottleneck.LayerNorm"] = body
        for network in (place, *(f"{place}.ffn.{n}" for n in range(_NETWORKS - 1))):
            matrices |= {f"{network}.intermediate.dense": (inner, width), f"{network}.output.dense": (width, inner)}
            norms[f"{network}.output.LayerNorm"] = width
    words, positions, types = TABLES
    tables = {words: (spec.vocab_size, width), positions: (spec.max_positions, body), types: (bert.TYPES, body)}
    return tables | bert.with_biases(matrices, norms)


def build(spec: LanguageSpec) -> nn.Module:
    """``MobileBertForSequenceClassification`` with parameters on the meta device, positions filled."""
    import torch
    from transformers import MobileBertConfig, MobileBertForSequenceClassification

    sizes = {
        "embedding_size": spec.hidden_size, "intra_bottleneck_size": spec.hidden_size,
        "hidden_size": _BODY * spec.hidden_size, "num_feedforward_networks": _NETWORKS, "classifier_activation": False,
    }  # fmt: skip
    with torch.device("meta"):
        module = MobileBertForSequenceClassification(MobileBertConfig(**(bert.settings(spec) | sizes)))
    module.mobilebert.embeddings.position_ids = torch.arange(spec.max_positions)[None]
    return cast("nn.Module", module)
