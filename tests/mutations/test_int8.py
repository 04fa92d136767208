"""Mutations of int8 layers that move no measure of a stage: the weights themselves tell, and name the layer."""

from __future__ import annotations

import pytest

from tests.mutations.conftest import Mutate
from tests.mutations.copies import Array
from vlmexport.parity.layers.int8_weights import WRONG

pytestmark = pytest.mark.slow

LAYERS = {
    "vision_encoder": ("vision.encoder.layers.2.mlp.fc1", "features"),
    "decoder_model_merged": ("language.model.layers.1.self_attn.k_proj", "logits"),
}


def one_off(zeros: Array) -> Array:
    zeros[7] += 1
    return zeros


@pytest.mark.parametrize("graph", LAYERS)
@pytest.mark.parametrize("fault", ["scales off by 1 %", "a zero point off by one"])
def test_the_layer_is_named(graph: str, fault: str, mutant: Mutate) -> None:
    found = mutant("int8")
    layer, stage = LAYERS[graph]
    if "scales" in fault:
        found.edit_weight(graph, f"{layer}.weight_scale", lambda scales: scales * 1.01)
    else:
        found.edit_weight(graph, f"{layer}.weight_zero_point", one_off)
    result = found.check(replay=None)
    assert not result.passed
    assert result.broken_stage == stage
    assert result.weights is not None
    (wrong,) = result.weights.faults
    assert wrong.layer == layer
    red = [gate.metric for gate in result.gates if not gate.passed and (gate.stage, gate.mode) == (stage, "local")]
    assert red == [WRONG]
