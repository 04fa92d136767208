"""Published sizes of language models, and what a kind refuses."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from tests.prompts import as_inputs
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.design import Design, language_of, specify
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.sketch import sketch

PUBLISHED = {
    "llama:1.4b": 1_364_297_728,  # mtgv/MobileLLaMA-1.4B-Base
    "llama:2.7b": 2_701_560_320,  # mtgv/MobileLLaMA-2.7B-Base
    "llama:7b": 6_738_415_616,  # lmsys/vicuna-7b-v1.5
    "qwen2:0.5b": 494_032_768,  # Qwen/Qwen2-0.5B: 0.49B
    "qwen2:1.5b": 1_543_714_304,  # Qwen/Qwen2-1.5B: 1.54B
    "qwen3:0.6b": 596_049_920,  # Qwen/Qwen3-0.6B: 0.6B
    "qwen3:1.7b": 1_720_574_976,  # Qwen/Qwen3-1.7B: 1.7B
    "qwen3:4b": 4_022_468_096,  # Qwen/Qwen3-4B: 4.0B
    "gpt2:82m": 81_912_576,  # distilbert/distilgpt2
    "gpt2:124m": 124_439_808,  # openai-community/gpt2
    "gpt2:355m": 354_823_168,  # openai-community/gpt2-medium
    "bert:tinybert4": 14_350_248,  # huawei-noah/TinyBERT_General_4L_312D; arXiv:1909.10351: 14.5M
    "bert:tinybert6": 66_955_008,  # huawei-noah/TinyBERT_General_6L_768D; arXiv:1909.10351: 67.0M
    "bert:base": 109_482_240,  # google-bert/bert-base-uncased; arXiv:1810.04805: 110M
    "mobilebert:25m": 24_581_888,  # google/mobilebert-uncased; arXiv:2004.02984: 25.3M, which is 3 % more
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_parameter_counts(text: str) -> None:
    """The head over classes is one's own, and counts as little as in the published encoders."""
    spec = language_of(text)
    shapes = plugins.language(spec).shapes(spec)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("classifier.")}
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
        (replace(language_of("qwen3:tiny"), hidden_act="gelu"), "a qwen3 with 'gelu' is not known: known: silu"),
        (replace(language_of("gpt2:tiny"), hidden_act="silu"), "a gpt2 with 'silu' is not known: known: gelu_new"),
        (replace(language_of("gpt2:tiny"), num_kv_heads=2), "a gpt2 of 4 heads, 2 of keys, 64 wide each cannot be"),
        (replace(language_of("gpt2:tiny"), head_dim=32), "a gpt2 of 4 heads, 4 of keys, 32 wide each cannot be"),
        (replace(language_of("bert:tiny"), head_dim=16), "a bert of 4 heads, 4 of keys, 16 wide each cannot be"),
        (replace(language_of("bert:tiny"), hidden_act="silu"), "a bert with 'silu' is not known: known: gelu, relu"),
        (replace(language_of("mobilebert:tiny"), hidden_act="gelu"), "a mobilebert with 'gelu' is not known"),
    ],
)  # fmt: skip
def test_what_a_kind_refuses(spec: LanguageSpec, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        plugins.language(spec).shapes(spec)


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("llama:tiny", ("yes", "no"), "a llama generates its answers, its config lists classes: leave out classes"),
        ("bert:tiny", (), "a bert chooses its answer, its config lists 0 of them: list the answers"),
        ("mobilebert:tiny", ("yes",), "a mobilebert chooses its answer, its config lists 1 of them"),
    ],
)
def test_classes_belong_to_what_chooses(text: str, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        plugins.check_answers(replace(language_of(text), classes=classes))


@torch.no_grad()
@pytest.mark.parametrize("text", ["bert:tiny", "mobilebert:tiny"])
def test_a_classifier_reads_both_ways_and_answers_from_the_first_position(text: str) -> None:
    vlm = sketch(specify(Design("vit:tiny", "linear", text)), 2, ("language",))
    embeds = vlm.embed(list(range(3, 20)))
    logits = vlm.logits(as_inputs(embeds), 1)
    assert logits.shape == (1, 1, 20)
    (answer,) = vlm.generate(as_inputs(embeds), 9)
    assert answer[0] == int(logits.argmax())
    changed = embeds.clone()
    changed[:, -1] = vlm.embed([40])[:, 0]
    assert (vlm.logits(as_inputs(changed), 1) - logits).abs().max() > 1e-4
    padded = torch.cat([embeds, torch.zeros(1, 4, embeds.shape[-1])], 1)
    mask = torch.tensor([[1] * 17 + [0] * 4])
    again = vlm.language(inputs_embeds=padded, attention_mask=mask).logits
    assert torch.allclose(again, logits[:, 0], atol=1e-5)


def test_an_unknown_kind_or_variant_lists_the_known() -> None:
    with pytest.raises(Unsupported, match=r"unknown language 'mamba'.*known: bert, gpt2, llama, mobilebert, qwen2"):
        language_of("mamba:tiny")
    with pytest.raises(Unsupported, match=r"qwen2 has no variant '9b': known: qwen2:tiny, qwen2:0\.5b, qwen2:1\.5b"):
        language_of("qwen2:9b")
