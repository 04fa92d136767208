"""Published sizes of language models, and what a kind refuses."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from vlmexport.checkpoint import LanguageSpec
from vlmexport.design import language_of
from vlmexport.errors import Unsupported
from vlmexport.model import plugins

PUBLISHED = {
    "llama:1.4b": 1_364_297_728,  # mtgv/MobileLLaMA-1.4B-Base
    "llama:2.7b": 2_701_560_320,  # mtgv/MobileLLaMA-2.7B-Base
    "llama:7b": 6_738_415_616,  # lmsys/vicuna-7b-v1.5
    "qwen2:0.5b": 494_032_768,  # Qwen/Qwen2-0.5B: 0.49B
    "qwen2:1.5b": 1_543_714_304,  # Qwen/Qwen2-1.5B: 1.54B
    "gpt2:82m": 81_912_576,  # distilbert/distilgpt2
    "gpt2:124m": 124_439_808,  # openai-community/gpt2
    "gpt2:355m": 354_823_168,  # openai-community/gpt2-medium
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_parameter_counts(text: str) -> None:
    spec = language_of(text)
    shapes = plugins.language(spec).shapes(spec)
    if spec.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert sum(prod(shape) for shape in shapes.values()) == PUBLISHED[text]


class Head(nn.Module):
    """One head of causal attention as from-scratch tutorials write it, over the root of the whole width."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, head, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        output: torch.Tensor = weights.masked_fill(future, float("-inf")).softmax(-1) @ self.value(x)
        return output


@torch.no_grad()
def test_the_tutorials_heads_are_gpt2s() -> None:
    spec = replace(language_of("gpt2:tutorial"), num_layers=1, hidden_size=64, head_dim=8)
    torch.manual_seed(0)
    heads, x = [Head(64, 8) for _ in range(8)], torch.randn(2, 5, 64)
    parts = [torch.cat([getattr(head, name).weight for head in heads]) for name in ("query", "key", "value")]
    attention = plugins.language(spec).build(spec).get_submodule("transformer.h.0.attn").to_empty(device="cpu")
    attention.load_state_dict({
        "c_attn.weight": torch.cat([parts[0] * (8 / 64) ** 0.5, *parts[1:]]), "c_attn.bias": torch.zeros(192),
        "c_proj.weight": torch.eye(64), "c_proj.bias": torch.zeros(64),
    })  # fmt: skip
    mask = torch.full((5, 5), float("-inf")).triu(1)[None, None]
    expected = torch.cat([head(x) for head in heads], -1)
    assert torch.allclose(attention(x, attention_mask=mask)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(language_of("llama:tiny"), hidden_act="gelu"), "a llama with 'gelu' is not known: known: silu"),
        (replace(language_of("qwen2:tiny"), hidden_act="gelu"), "a qwen2 with 'gelu' is not known: known: silu"),
        (replace(language_of("gpt2:tiny"), hidden_act="silu"), "a gpt2 with 'silu' is not known: known: gelu_new"),
        (replace(language_of("gpt2:tiny"), num_kv_heads=2), "a gpt2 of 4 heads, 2 of keys, 64 wide each cannot be"),
        (replace(language_of("gpt2:tiny"), head_dim=32), "a gpt2 of 4 heads, 4 of keys, 32 wide each cannot be"),
    ],
)  # fmt: skip
def test_what_a_kind_refuses(spec: LanguageSpec, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        plugins.language(spec).shapes(spec)


def test_an_unknown_kind_or_variant_lists_the_known() -> None:
    with pytest.raises(Unsupported, match=r"unknown language 'mamba'.*known: gpt2, llama, qwen2"):
        language_of("mamba:tiny")
    with pytest.raises(Unsupported, match=r"qwen2 has no variant '9b': known: qwen2:tiny, qwen2:0\.5b, qwen2:1\.5b"):
        language_of("qwen2:9b")
