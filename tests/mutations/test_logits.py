"""Mutations of the decoder: red at logits when fed by the float model; all before it is right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.mutations import graphs
from tests.mutations.conftest import Mutate
from tests.mutations.copies import Array, failed
from vlmexport.artifact.onnx.passes.attach_weights import find, read
from vlmexport.source.locate import open_model

pytestmark = pytest.mark.slow

HEAD = 64


def other_theta(frequencies: Array) -> Array:
    return 500_000.0 ** -(np.arange(len(frequencies)) / len(frequencies))


def without_first_head(weight: Array) -> Array:
    weight[:HEAD] = 0
    return weight


def tied(_: Array) -> Array:
    return read(find(open_model("demo"), "language.model.embed_tokens.weight")).T


def with_nan(weight: Array) -> Array:
    weight[3, 5] = np.nan
    return weight


LAYER = "language.model.layers"
WEIGHTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "rope theta wrong": ("language.model.rotary_emb.inv_freq", other_theta),
    "one attention head zeroed": (f"{LAYER}.2.self_attn.o_proj.weight", without_first_head),
    "tied instead of untied head": ("language.lm_head.weight", tied),
    "NaN in one tensor": (f"{LAYER}.1.mlp.up_proj.weight", with_nan),
}
FIRST = {
    "rope theta wrong": f"{LAYER}.0.self_attn.o_proj",  # q and k are compared before they are turned
    "RMSNorm epsilon": f"{LAYER}.0.input_layernorm",
}


@pytest.mark.parametrize("name", [*WEIGHTS, "RMSNorm epsilon"])
def test_it_is_red_at_logits(name: str, mutant: Mutate) -> None:
    found = mutant("fp32")
    if name in WEIGHTS:
        found.edit_weight("decoder_model_merged", *WEIGHTS[name])
    else:
        found.edit_graph("decoder_model_merged", graphs.smaller_epsilon)
    result = found.check()
    assert result.broken_stage == "logits"
    places = failed(result)
    assert ("logits", "local") in places
    assert {stage for stage, _ in places} <= {"logits", "answer"}
    if "NaN" in name:
        assert ("finite", "local") in {(gate.metric, gate.mode) for gate in result.gates if not gate.passed}
    layer = FIRST[name] if name in FIRST else WEIGHTS[name][0].removesuffix(".weight")
    assert found.first() == {"logits": layer}
