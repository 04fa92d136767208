"""The same in GGUF files, where names, row order and metadata are a converter's to get wrong."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

from tests.mutations.conftest import Mutate
from tests.mutations.copies import Array, Mutant, failed

pytestmark = pytest.mark.slow

HEADS = 4
LAYER = "language.model.layers"


def not_permuted(name: str, rows: Array) -> None:
    """q and k as the checkpoint has them, in the order of Hugging Face's rotary embedding."""
    if name.endswith(("attn_q.weight", "attn_k.weight")):
        half = len(rows) // HEADS // 2
        rows[:] = rows.reshape(HEADS, half, 2, -1).swapaxes(1, 2).reshape(rows.shape).copy()


def without_first_head(name: str, rows: Array) -> None:
    if name == "blk.2.attn_output.weight":
        rows[:, :64] = 0


def with_nan(name: str, rows: Array) -> None:
    if name == "blk.1.ffn_up.weight":
        rows[3, 5] = np.nan


def shifted(name: str, rows: Array) -> None:
    if name == "v.position_embd.weight":
        rows[:] = np.roll(rows, 1, 0)


def blue_first(name: str, kernel: Array) -> None:
    if name == "v.patch_embd.weight":
        kernel[:] = kernel[:, ::-1].copy()


def test_q_and_k_not_permuted(mutant: Mutate) -> None:
    found = mutant("gguf")
    found.edit_tensors("language", not_permuted)
    red_at_logits(found, f"{LAYER}.0.self_attn.q_proj")


def test_rope_theta(mutant: Mutate) -> None:
    found = mutant("gguf")
    found.edit_fields("language", **{"llama.rope.freq_base": 500_000.0})
    red_at_logits(found, f"{LAYER}.0.self_attn.o_proj")


def test_one_head_zeroed(mutant: Mutate) -> None:
    found = mutant("gguf")
    found.edit_tensors("language", without_first_head)
    red_at_logits(found, f"{LAYER}.2.self_attn.o_proj")


def test_nan(mutant: Mutate) -> None:
    found = mutant("gguf")
    found.edit_tensors("language", with_nan)
    red_at_logits(found, f"{LAYER}.1.mlp.up_proj")


def test_epsilon(mutant: Mutate) -> None:
    """Norms are not seen into, so that the layers behind the first one show it."""
    found = mutant("gguf")
    found.edit_fields("language", **{"llama.attention.layer_norm_rms_epsilon": 1e-6})
    red_at_logits(found, f"{LAYER}.0.self_attn.q_proj")


def red_at_logits(found: Mutant, layer: str) -> None:
    result = found.check()
    assert result.broken_stage == "logits"
    assert {stage for stage, _ in failed(result)} <= {"logits", "answer"}
    assert found.first() == {"logits": layer}


@pytest.mark.parametrize("change", [shifted, blue_first])
def test_the_tower(change: Any, mutant: Mutate) -> None:
    """The first product behind the embeddings is the first that shows it."""
    found = mutant("gguf")
    found.edit_tensors("mmproj", change)
    result = found.check()
    assert result.broken_stage == "features"
    assert not failed(result) & {("pixels", "chained"), ("tokens", "local"), ("logits", "local"), ("answer", "local")}
    assert found.first() == {"features": "vision.encoder.layers.0.self_attn.q_proj"}


def test_mean_of_imagenet(mutant: Mutate) -> None:
    found = mutant("gguf")
    path = found.own("mmproj")
    reader = gguf.GGUFReader(path, "r+")
    for key, values in (("image_mean", (0.485, 0.456, 0.406)), ("image_std", (0.229, 0.224, 0.225))):
        field = reader.fields[f"clip.vision.{key}"]
        for place, value in zip(field.data, values, strict=True):
            field.parts[place][:] = value
    del reader
    result = found.check()
    assert result.broken_stage == "pixels"
    assert not [place for place in failed(result) if place[1] == "local"]


def test_a_wrong_bos(mutant: Mutate) -> None:
    found = mutant("gguf")
    found.edit_fields("language", **{"tokenizer.ggml.bos_token_id": 3})
    assert "token 0: 3, the float model's is 1" in prompt_error(found)


def test_a_newline_missing_after_the_image(mutant: Mutate) -> None:
    found = mutant("gguf")
    template = gguf.GGUFReader(found.own("language")).fields["tokenizer.chat_template"].contents().encode()
    assert b"__>\\n'" in template
    found.edit_fields("language", **{"tokenizer.chat_template": template.replace(b"__>\\n'", b"__>'  ")})
    assert "for '\\n" in prompt_error(found)


def prompt_error(found: Mutant) -> str:
    """What is said of the logits, chained; all that is fed by the float model is right."""
    result = found.check()
    assert result.broken_stage == "logits"
    assert not [place for place in failed(result) if place[1] == "local"]
    (stage,) = (stage for stage in result.stages if (stage.stage, stage.mode) == ("logits", "chained"))
    return stage.error or ""
