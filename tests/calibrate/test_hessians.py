"""What GPTQ is given: mean x·xᵀ of what each layer of the decoder read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.calibrate.pictures import samples
from vlmexport.calibrate import Sample
from vlmexport.calibrate.hessians import measure
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.calibrate.statistics import F64
from vlmexport.measure import hessian_bytes
from vlmexport.model import VLM, load
from vlmexport.source.checkpoint import Checkpoint


@pytest.mark.slow
def test_sums(tiny: Checkpoint, tmp_path: Path) -> None:
    vlm, chosen = load(tiny), samples(2, tmp_path / "log")
    found = measure(vlm, tiny.prompts, chosen, tmp_path, 0.5)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == vlm.spec.language.num_layers
    assert sum(file.stat().st_size for file in files) == pytest.approx(hessian_bytes(vlm.spec.language), rel=0.05)
    layers = [f"language.model.layers.{i}" for i in range(vlm.spec.language.num_layers)]
    assert set(found.places) == {
        f"{layer}.{part}_proj" for layer in layers
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    }  # fmt: skip
    assert found.of("language.lm_head") is None
    for index, part in ((0, "self_attn.q"), (0, "self_attn.v"), (1, "self_attn.k"), (1, "mlp.down")):
        path = f"{layers[index]}.{part}_proj"
        assert found.of(path) == pytest.approx(expected(vlm, tiny, chosen, path), rel=1e-4, abs=1e-6)


def expected(vlm: VLM, checkpoint: Checkpoint, chosen: list[Sample], path: str) -> F64:
    """Mean x·xᵀ of what a layer reads in whole passes of the decoder."""
    total, weights = np.zeros(0), 0.0
    for sample in chosen:
        tokens, inputs = sequence(vlm, checkpoint.prompts, sample), []
        handle = vlm.get_submodule(path).register_forward_pre_hook(lambda _, given, to=inputs: to.append(given[0][0]))
        with torch.no_grad():
            vlm.language(inputs_embeds=tokens.inputs.embeds, use_cache=False)
        handle.remove()
        rows, weight = inputs[0].double().numpy(), np.where(tokens.is_text, 1.0, 0.5)
        product = (rows * weight[:, None]).T @ rows
        total, weights = product if total.size == 0 else total + product, weights + weight.sum()
    return total / weights
