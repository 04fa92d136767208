"""Weights in memory and weights mapped from the file compute the same, bit by bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.prompts import tokenized
from vlmexport.model import VLM, load, vlm
from vlmexport.model.weights import MappedLinear, available_memory
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(params=["float16", "bfloat16", "float32", "tied"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """A tiny checkpoint of a type."""
    tied = request.param == "tied"
    folder = write_checkpoint(tmp_path / "model", tiny_spec("ldpnetv2", tie_word_embeddings=tied))
    path = folder / "model.safetensors"
    state = load_file(path)
    if not tied:
        state = {name: value.to(getattr(torch, request.param)) for name, value in state.items()}
    save_file(state, path)
    return open_checkpoint(folder)


def stages(model: VLM, checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Features, tokens, and the logits of an answer of four tokens."""
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    prompt = tokenized(checkpoint.tokenizer, checkpoint.spec.prompt, "what is it?")
    with torch.inference_mode():
        features = model.features(pixels)
        tokens = model.tokens(features)
        inputs = model.inputs(prompt, tokens)
        return [features, tokens, *(logits for _, logits in model.generate(inputs, 4))]


def test_mapped_weights_compute_the_same(stored: Checkpoint) -> None:
    resident, mapped = load(stored, resident=True), load(stored, resident=False)
    assert [name for name, _ in mapped.named_parameters()] == [name for name, _ in resident.named_parameters()]
    assert any(isinstance(module, MappedLinear) for module in mapped.modules())
    assert not any(isinstance(module, MappedLinear) for module in resident.modules())
    assert {value.dtype for value in resident.parameters()} == {torch.float32}
    for expected, found in zip(stages(resident, stored), stages(mapped, stored), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_a_large_head_is_converted_in_parts(stored: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[MappedLinear.__module__], "AT_ONCE", 50_000)
    resident, mapped = load(stored, resident=True), load(stored, resident=False)
    head = mapped.language.lm_head
    assert isinstance(head, MappedLinear)
    assert head.scratch.numel() <= 50_000 < head.weight.numel()
    for expected, found in zip(stages(resident, stored), stages(mapped, stored), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_mapped_matrices_are_the_file(tiny: Checkpoint) -> None:
    model = load(tiny, resident=False)
    own = {name for name, value in model.named_parameters() if value.dtype == torch.float16}
    assert {"language.lm_head.weight", "language.model.embed_tokens.weight", "projector.mlp.mlp.0.weight"} <= own
    size = sum(value.numel() for value in model.parameters())
    assert sum(model.get_parameter(name).numel() for name in own) > 0.8 * size


def test_components_are_loaded_alone(tiny: Checkpoint) -> None:
    model = load(tiny, components=("vision", "projector"))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"vision", "projector"}


def test_memory_decides_component_by_component(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    small = 4 * (tiny.parameters("vision") + tiny.parameters("projector"))
    monkeypatch.setattr(vlm, "available_memory", lambda: 2 * small)
    kinds = {name: value.dtype for name, value in load(tiny).named_parameters()}
    assert kinds["vision.encoder.layers.0.mlp.fc1.weight"] == torch.float32
    assert kinds["language.lm_head.weight"] == torch.float16
    assert available_memory() > 2**28
