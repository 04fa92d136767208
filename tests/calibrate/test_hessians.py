"""What GPTQ is given: mean x·xᵀ of what each layer of the decoder read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.calibrate.pictures import samples
from vlmexport.calibrate.hessians import file_bytes, measure
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.checkpoint import Checkpoint
from vlmexport.model import load


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_sums(tiny: Checkpoint, tmp_path: Path, memory: int) -> None:
    vlm, chosen = load(tiny), samples(2, tmp_path / "log")
    found = measure(vlm, tiny.tokenizer, chosen, tmp_path, 0.5, memory=memory)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) == (vlm.spec.language.num_layers if memory == 0 else 1)
    assert sum(file.stat().st_size for file in files) == pytest.approx(file_bytes(vlm.spec.language), rel=0.05)
    layers = [f"language.model.layers.{i}" for i in range(vlm.spec.language.num_layers)]
    assert set(found.places) == {
        f"{layer}.{part}_proj" for layer in layers
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
    }  # fmt: skip
    total, weights = 0.0, 0.0
    first = vlm.language.get_submodule("model.layers.0")
    for sample in chosen:
        tokens = sequence(vlm, tiny.tokenizer, sample)
        with torch.no_grad():
            rows = first.input_layernorm(tokens.embeds)[0].double().numpy()  # type: ignore[operator]
        weight = np.where(tokens.is_text, 1.0, 0.5)
        total = total + (rows * weight[:, None]).T @ rows
        weights += weight.sum()
    for part in "qkv":
        measured = found.of(f"{layers[0]}.self_attn.{part}_proj")
        assert measured == pytest.approx(total / weights, rel=1e-4, abs=1e-6)
    assert found.of("language.lm_head") is None
