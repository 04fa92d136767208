from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vlmexport.calibrate import Sample, collect
from vlmexport.checkpoint import Checkpoint
from vlmexport.errors import NotEnoughData
from vlmexport.model import load


def sample(seed: int) -> Sample:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    return Sample(str(seed), str(seed), "what is it?", lambda: Image.fromarray(pixels), answer="a chat")


def test_every_linear_layer_is_seen(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    statistics = collect(vlm, tiny.tokenizer, [sample(0)])
    used = tiny.spec.vision.used_layers
    expected = {
        name
        for name, module in vlm.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and not name.startswith(f"vision.encoder.layers.{used}")
    }
    assert set(statistics.layers) == expected
    layer = statistics.layers["language.model.layers.0.self_attn.q_proj"]
    assert layer.count_image == 144
    prompt = tiny.tokenizer.prompt(tiny.spec.prompt, "what is it?")
    answer = tiny.tokenizer.encode("a chat", bos=False)
    assert layer.count_text == len(prompt.before) + len(prompt.after) + len(answer) + 1
    patch = statistics.layers["vision.embeddings.patch_embedding"]
    assert patch.columns == 3
    assert patch.count_image == 336 * 336


def test_shards_add_up_to_the_whole(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    whole = collect(vlm, tiny.tokenizer, [sample(0), sample(1)])
    parts = collect(vlm, tiny.tokenizer, [sample(0)]) + collect(vlm, tiny.tokenizer, [sample(1)])
    assert parts.samples == whole.samples
    for name, layer in whole.layers.items():
        other = parts.layers[name]
        assert (other.minimum, other.maximum) == (layer.minimum, layer.maximum)
        assert (other.histogram.counts == layer.histogram.counts).all()
        assert other.sum_sq_image == pytest.approx(layer.sum_sq_image, rel=1e-12)


def test_the_hooks_are_gone_afterwards(tiny: Checkpoint) -> None:
    vlm = load(tiny)
    collect(vlm, tiny.tokenizer, [sample(0)])
    assert not any(module._forward_pre_hooks for module in vlm.modules())


def test_no_samples(tiny: Checkpoint) -> None:
    with pytest.raises(NotEnoughData, match="no calibration samples"):
        collect(load(tiny), tiny.tokenizer, [])
