"""Sensitivities foretell what an error in a weight does to the answers; mapped weights give the same ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.prompts import tokenized
from vlmexport.calibrate.samples import Sample, calibration_samples
from vlmexport.calibrate.sensitivity import EMBEDDING, Sensitivity, measure
from vlmexport.model import VLM, load
from vlmexport.quantize.allocation import loss
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("sensitive") / "tiny"
    return open_checkpoint(write_checkpoint(folder, tiny_spec("mlp2x_gelu", image_size=56)))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [replace(sample, answer="a red square") for sample in calibration_samples(12)]


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, samples: list[Sample]) -> Sensitivity:
    return measure(load(checkpoint), checkpoint.prompts, samples)


def log_probabilities(vlm: VLM, checkpoint: Checkpoint, samples: list[Sample]) -> torch.Tensor:
    """At the positions that decide the answers."""
    rows = []
    with torch.inference_mode():
        for sample in samples:
            assert sample.answer is not None
            tokens = vlm.tokens(vlm.features(vlm.pixels(sample.image())))
            prompt = tokenized(checkpoint.tokenizer, vlm.spec.prompt, sample.question, tokens.shape[1])
            answer = checkpoint.tokenizer.encode(sample.answer)
            inputs = vlm.inputs(prompt.answered(answer), tokens)
            rows.append(vlm.logits(inputs, len(answer) + 1)[0].log_softmax(-1))
    return torch.cat(rows)


def test_every_linear_layer_of_the_decoder_and_the_embedding(checkpoint: Checkpoint, found: Sensitivity) -> None:
    vlm = load(checkpoint)
    linear = {f"language.{name}" for name, layer in vlm.language.named_modules() if isinstance(layer, nn.Linear)}
    assert set(found.gradients) == linear | {EMBEDDING}
    for path in linear | {EMBEDDING}:
        moments, layer = found.of(path), vlm.get_submodule(path)
        assert moments is not None
        assert (moments.rows.size, moments.columns.size) == layer.weight.shape
        assert (moments.rows >= 0).all()
        assert moments.rows.any()


@pytest.mark.parametrize(
    "path",
    [EMBEDDING, "language.lm_head"]
    + [f"language.model.layers.0.{part}" for part in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")],
)
def test_foretells_the_divergence(checkpoint: Checkpoint, samples: list[Sample], found: Sensitivity, path: str) -> None:
    """Within a factor of four, for noise in a layer's weights: it is one draw of the Fisher information."""
    vlm = load(checkpoint)
    before = log_probabilities(vlm, checkpoint, samples)
    weight = vlm.get_submodule(path).weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std() * 0.05
    weight.data += noise
    after = log_probabilities(vlm, checkpoint, samples)
    measured = float((before.exp() * (before - after)).sum(-1).mean())
    moments = found.of(path)
    assert moments is not None
    predicted = loss(noise.numpy(), moments.rows, moments.columns)
    assert predicted / 4 < measured < predicted * 4


def test_mapped_weights_give_the_same(checkpoint: Checkpoint, samples: list[Sample], found: Sensitivity) -> None:
    mapped = measure(load(checkpoint, resident=False), checkpoint.prompts, samples)
    for path, gradients in found.gradients.items():
        np.testing.assert_allclose(mapped.gradients[path], gradients, rtol=1e-3, atol=1e-12)
        np.testing.assert_allclose(mapped.inputs[path], found.inputs[path], rtol=1e-3, atol=1e-12)


def test_survives_a_file(found: Sensitivity, tmp_path: Path) -> None:
    found.save(tmp_path / "s.safetensors")
    again = Sensitivity.load(tmp_path / "s.safetensors")
    assert (again.positions, again.samples) == (found.positions, found.samples)
    for path in found.gradients:
        np.testing.assert_array_equal(again.gradients[path], found.gradients[path])
        np.testing.assert_array_equal(again.inputs[path], found.inputs[path])
