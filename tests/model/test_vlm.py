"""The float model against transformers' own, and the projectors against their papers' operators."""

from __future__ import annotations

import torch
from torch.nn import functional

from tests.prompts import texts, tokenized
from vlmexport.model import load
from vlmexport.source.checkpoint import Checkpoint


def test_features_are_hidden_states_of_layer_minus_two(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    pixels = torch.randn(2, 3, 336, 336)
    with torch.inference_mode():
        expected = vlm.vision(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.allclose(vlm.features(pixels), expected, atol=1e-6)


def test_ldpnetv2_is_adaptive_pooling(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    state = vlm.projector.state_dict()
    features = torch.randn(1, 576, 64)
    with torch.inference_mode():
        x = functional.gelu(functional.linear(features, state["mlp.mlp.0.weight"], state["mlp.mlp.0.bias"]))
        x = functional.linear(x, state["mlp.mlp.2.weight"], state["mlp.mlp.2.bias"])
        x = functional.adaptive_avg_pool2d(x.transpose(1, 2).reshape(1, -1, 24, 24), (12, 12))
        x = x + functional.conv2d(x, state["peg.peg.0.weight"], state["peg.peg.0.bias"], padding=1, groups=x.shape[1])
        expected = x.flatten(2).transpose(1, 2)
        assert torch.allclose(vlm.tokens(features), expected, atol=1e-5)


def test_greedy_decoding_with_cache_equals_without(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    prompt = tokenized(tiny.tokenizer, tiny.spec.prompt, "what is it?")
    with torch.inference_mode():
        tokens = vlm.tokens(vlm.features(torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))))
        with_cache = [token for token, _ in vlm.generate(vlm.inputs(prompt, tokens), 6)]
        without: list[int] = []
        for _ in range(6):
            inputs = vlm.inputs(prompt.answered(without), tokens)
            without.append(int(vlm.logits(inputs, 1)[0, -1].argmax()))
            if without[-1] == tiny.spec.eos_token_id:
                break
    assert with_cache == without


def test_prompt_is_tokenized_chunk_by_chunk(tiny: Checkpoint) -> None:
    tokenizer = tiny.tokenizer
    prompt = tokenized(tokenizer, tiny.spec.prompt, "what is it?")
    assert prompt.text.endswith("USER: <image>\nwhat is it? ASSISTANT:")
    before, after = texts(prompt)
    assert before[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in after
    newline = next(i for i, text in tokenizer.texts().items() if text == "<0x0A>")
    assert after[1] == newline
