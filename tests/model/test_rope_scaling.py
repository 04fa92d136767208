"""Scaled rotary embeddings: transformers' frequencies, and the same logits from fused operators and llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from tests.checkpoints import tiny_spec, write_design
from tests.gguf_bundles import export
from tests.onnx_bundles import picture
from tests.prompts import ask
from vlmexport.artifact.onnx.build import fused_decoder
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import empty_cache, open_session, rows_to_keep, run
from vlmexport.checkpoint.rope import RopeScaling, read_scaling
from vlmexport.design import language_of
from vlmexport.errors import Unsupported
from vlmexport.model import load, plugins
from vlmexport.report.inspection import inspection
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint

LLAMA_3_2 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
SCALINGS = [RopeScaling("linear", 4.0), RopeScaling("llama3", 8.0, 1.0, 4.0, 64)]


@pytest.mark.parametrize("scaling", [*SCALINGS, LLAMA_3_2])
def test_frequencies_are_those_of_transformers(scaling: RopeScaling) -> None:
    plain = replace(language_of("llama:tiny"), rope_theta=5e5, num_layers=1)
    spec = replace(plain, rope_scaling=scaling)
    expected, unscaled = (
        plugins.language(spec).build(each).get_submodule("model.rotary_emb").inv_freq for each in (spec, plain)
    )
    assert torch.allclose(unscaled / torch.tensor(scaling.divisors(5e5, 64)), expected, rtol=1e-6)
    divisors = scaling.divisors(5e5, 64)
    assert divisors[-1] == scaling.factor
    assert divisors[0] == (scaling.factor if scaling.rope_type == "linear" else 1)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_runtime_computes_it(scaling: RopeScaling, tmp_path: Path) -> None:
    spec = tiny_spec("mlp2x_gelu", image_size=168, num_layers=1, rope_scaling=scaling)
    found = open_checkpoint(write_design(tmp_path / "model", spec))
    assert found.spec.language == spec.language
    reference = ReferenceRuntime(found)
    tokens, prompt = reference.tokens(reference.features(reference.pixels(picture(0)))), ask(reference, "what ?")
    expected = reference.logits(prompt, [tokens], 0)

    found.spec = replace(found.spec, language=replace(spec.language, rope_scaling=None))
    assert apart(ReferenceRuntime(found).logits(prompt, [tokens], 0), expected) > 0.01, (
        "the scaling makes no difference"
    )
    found.spec = replace(found.spec, language=spec.language)

    save(fused_decoder.build(found, fused_decoder.HALF), tmp_path / "decoder.onnx")
    session, embeds = open_session(tmp_path / "decoder.onnx"), load(found).inputs(prompt, [torch.tensor(tokens)]).embeds
    mask = np.ones(embeds.shape[:2], np.int64)
    given = {"inputs_embeds": embeds.numpy(), "attention_mask": mask}
    got = run(session, given | rows_to_keep(session, 0) | empty_cache(session))["logits"]
    assert apart(got, expected) < 1e-5

    export(found, tmp_path / "bundle", type="f32", mmproj_type="f32")
    runtime = open_runtime(tmp_path / "bundle")
    assert apart(runtime.logits(prompt, [tokens], 0), expected) < 1e-4
    runtime.close()


def test_a_scaling_beyond_the_context_changes_nothing(tmp_path: Path) -> None:
    """InternVL's configs say ``dynamic``: its frequencies change where a prompt is longer than the context."""
    told: dict[str, Any] = {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
    assert read_scaling({"rope_scaling": told}, tmp_path) is None
    small = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "num_key_value_heads": 1,
             "max_position_embeddings": 50}  # fmt: skip
    torch.manual_seed(0)
    plain = Qwen2Model(Qwen2Config(**small)).eval()
    scaled = Qwen2Model(Qwen2Config(**small, rope_parameters=told | {"rope_theta": 10000.0})).eval()
    scaled.load_state_dict(plain.state_dict())
    with torch.inference_mode():
        for length in (50, 60):
            embeds = torch.randn(1, length, 64)
            one, other = (model(inputs_embeds=embeds).last_hidden_state for model in (plain, scaled))
            assert torch.equal(one, other) == (length == 50)


def apart(got: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_llama_cpps_qwen2_leaves_llama3_out(tmp_path: Path) -> None:
    spec = tiny_spec("mlp2x_gelu", image_size=168, num_layers=1, kind="qwen2", rope_scaling=LLAMA_3_2)
    found = open_checkpoint(write_design(tmp_path / "model", spec))
    with pytest.raises(Unsupported, match=r"qwen2 leaves out Llama 3's scaling .* use an ONNX bundle"):
        export(found, tmp_path / "bundle", type="f32")
    assert not (tmp_path / "bundle").exists()
    assert inspection(found)["formats"] == {
        "onnx": "yes", "gguf": "no: llama.cpp's qwen2 leaves out Llama 3's scaling of rotary embeddings"
    }  # fmt: skip
    linear = replace(spec.language, rope_scaling=SCALINGS[0])
    assert plugins.language(linear).gguf(linear).fields["rope.scaling.factor"] == ("f32", 4.0)
