from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.calibrate.pictures import samples
from tests.checkpoints import tiny_spec, write_checkpoint
from tests.prompts import texts, tokenized
from vlmexport.calibrate import Sample, collect
from vlmexport.calibrate.collect import LARGE_ANSWER, MAX_ANSWER
from vlmexport.design import Design, create
from vlmexport.errors import CheckpointError, NotEnoughData
from vlmexport.model import VLM, load
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint, open_checkpoint

Q_PROJ = "language.model.layers.0.self_attn.q_proj"


@pytest.fixture
def few(tmp_path: Path) -> list[Sample]:
    """With answers and without."""
    return samples(3, tmp_path / "log")


def one_by_one(vlm: VLM, checkpoint: Checkpoint, chosen: list[Sample]) -> dict[str, list[np.ndarray]]:
    """What goes into every layer: a plain pass for each sample, over prompt, image and answer."""
    seen: dict[str, list[np.ndarray]] = {}

    def hook(name: str) -> Callable[[Any, Any], None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0].movedim(1, -1) if isinstance(module, torch.nn.Conv2d) else inputs[0]
            seen.setdefault(name, []).append(x.flatten(0, -2).double().numpy())

        return add

    with torch.inference_mode():
        for sample in chosen:
            prompt = tokenized(checkpoint.tokenizer, vlm.spec.prompt, sample.question)
            pixels = vlm.pixels(sample.image())
            tokens = vlm.tokens(vlm.features(pixels))
            if sample.answer is None:
                answer = [token for token, _ in vlm.generate(vlm.inputs(prompt, tokens), MAX_ANSWER)]
            else:
                answer = [*checkpoint.tokenizer.encode(sample.answer), vlm.spec.eos_token_id]
            handles = [
                module.register_forward_pre_hook(hook(name))
                for name, module in vlm.named_modules()
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
            ]
            vlm.tokens(vlm.features(pixels))
            vlm.logits(vlm.inputs(prompt.answered(answer), tokens), len(answer) + 1)  # those that decide a token
            for handle in handles:
                handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("together", [3, 1])
def test_a_batch_counts_what_plain_passes_see(
    together: int, tiny: Checkpoint, few: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one batch, and one by one because more would take too much memory."""
    vlm = load(tiny)
    if together == 1:
        monkeypatch.setattr(sys.modules[collect.__module__], "AT_ONCE", 1)
    statistics = collect(vlm, tiny.prompts, few)
    seen = one_by_one(vlm, tiny, few)
    assert set(statistics.layers) == set(seen) - {"projector.peg.peg.0"}  # depthwise, never int8
    for name, layer in statistics.layers.items():
        rows = np.concatenate(seen[name])
        assert layer.count_image + layer.count_text == len(rows), name
        assert layer.sum_sq_image + layer.sum_sq_text == pytest.approx(np.square(rows).sum(0), rel=1e-4), name
        assert (layer.minimum, layer.maximum) == pytest.approx((rows.min(), rows.max()), rel=1e-4), name
        expected = np.histogram(rows, layer.histogram.edges)[0]
        assert layer.histogram.counts.sum() == rows.size
        assert np.abs(layer.histogram.counts - expected).sum() <= 1e-3 * rows.size, name


def test_the_head_is_given_the_positions_that_decide_a_token(tiny: Checkpoint, few: list[Sample]) -> None:
    """Logits of every position of a batch would be gigabytes in a large vocabulary."""
    vlm, read = load(tiny), []
    vlm.language.lm_head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))  # type: ignore[operator, union-attr]
    collect(vlm, tiny.prompts, [few[0], few[2]])
    assert set(read) == {1}
    read.clear()
    collect(vlm, tiny.prompts, [few[1]])
    assert read == [len(tiny.tokenizer.encode("a chat")) + 2]


def test_image_and_text_positions(tiny: Checkpoint, few: list[Sample]) -> None:
    layer = collect(load(tiny), tiny.prompts, [few[1]]).layers[Q_PROJ]
    assert layer.count_image == 144
    prompt = tokenized(tiny.tokenizer, tiny.spec.prompt, few[1].question)
    answer = tiny.tokenizer.encode("a chat")
    assert layer.count_text == sum(map(len, texts(prompt))) + len(answer) + 1


def test_answers_of_a_large_decoder_are_short(
    tiny: Checkpoint, few: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[collect.__module__], "LARGE", 1)
    layer = collect(load(tiny), tiny.prompts, [few[0]]).layers[Q_PROJ]
    prompt = tokenized(tiny.tokenizer, tiny.spec.prompt, few[0].question)
    assert 1 <= layer.count_text - sum(map(len, texts(prompt))) <= LARGE_ANSWER


def test_layers_behind_the_selected_one_are_not_run(tiny: Checkpoint, few: list[Sample]) -> None:
    statistics = collect(load(tiny), tiny.prompts, few[1:2])
    assert not any(f"vision.encoder.layers.{tiny.spec.vision.used_layers}" in name for name in statistics.layers)
    patch = statistics.layers["vision.embeddings.patch_embedding"]
    assert (patch.columns, patch.count_image) == (3, 336 * 336)


def test_layers_that_are_never_int8_are_not_looked_at(few: list[Sample], tmp_path: Path) -> None:
    """In a convolutional encoder they read more values than all others together."""
    pytest.importorskip("timm", reason="timm is not installed")
    create(Design("fastvit:tiny", "mlp2x_gelu", "llama:tiny", image_size=128), tmp_path / "design")
    checkpoint = open_checkpoint(tmp_path / "design")
    found = collect(load(checkpoint, components=COMPONENTS[:2]), checkpoint.prompts, few[:1])
    blocks = {"1.blocks.0": (), "1.blocks.1": (), "2.blocks.0": ()} | dict.fromkeys(
        ("3.blocks.0", "4.blocks.0"), ("token_mixer.qkv", "token_mixer.proj")
    )
    inside = {
        f"vision.stages.{block}.{name}" for block, more in blocks.items() for name in ("mlp.fc1", "mlp.fc2", *more)
    }
    gates = {"vision.final_conv.se.fc1", "vision.final_conv.se.fc2"}
    assert set(found.layers) == inside | gates | {"projector.0", "projector.2"}


def test_tower_and_projector_alone_see_the_same(tiny: Checkpoint, few: list[Sample]) -> None:
    components = ("vision", "projector")
    alone = collect(load(tiny, components=components), tiny.prompts, few[1:2])
    whole = collect(load(tiny), tiny.prompts, few[1:2])
    assert alone.sha256() == whole.only(components).sha256()
    assert not any(name.startswith("language") for name in alone.layers)


@pytest.mark.slow
def test_mapped_weights_see_the_same(tiny: Checkpoint, few: list[Sample]) -> None:
    mapped, resident = (collect(load(tiny, resident=stays), tiny.prompts, few) for stays in (False, True))
    assert mapped.sha256() == resident.sha256()


@pytest.mark.slow
def test_shards_add_up_to_the_whole(tiny: Checkpoint, few: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[collect.__module__], "SHARD", 2)
    vlm = load(tiny)
    whole = collect(vlm, tiny.prompts, few)
    parts = [collect(vlm, tiny.prompts, part) for part in (few[:2], few[2:])]
    assert (parts[0] + parts[1]).sha256() == whole.sha256()


def test_the_hooks_are_gone_afterwards(tiny: Checkpoint, few: list[Sample]) -> None:
    vlm = load(tiny)
    collect(vlm, tiny.prompts, few[1:2])
    assert not any(module._forward_pre_hooks for module in vlm.modules())


def test_no_samples(tiny: Checkpoint) -> None:
    with pytest.raises(NotEnoughData, match="no calibration samples"):
        collect(load(tiny), tiny.prompts, [])


def test_activations_that_are_not_finite_name_their_layer(few: list[Sample], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "nan", tiny_spec("ldpnetv2"))
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.input_layernorm.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"layers\.0\.self_attn\.q_proj is given values that are not finite"):
        collect(load(checkpoint), checkpoint.prompts, few[:2])
