"""A decoder computes its head for the last positions that are asked for, and for no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.onnx_bundles import Bundles
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.build import fused_decoder
from vlmexport.artifact.onnx.passes import kept_rows
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import NUM_LOGITS, empty_cache, open_session, run, with_outputs
from vlmexport.artifact.onnx.trace import components
from vlmexport.design import Design, specify
from vlmexport.model.sketch import sketch
from vlmexport.source.checkpoint import open_checkpoint

LENGTH = 6
HEAD = "language.lm_head"
PRECISIONS = ("fp32", "fp16", "int8", "int4")


def traced(path: Path, text: str) -> None:
    vlm = sketch(specify(Design("clip:tiny", "mlp2x_gelu", text, image_size=56)), 1, ("language",))
    save(components.trace_decoder(vlm).model, path)


def fused(path: Path, bits: str) -> None:
    checkpoint = open_checkpoint(write_checkpoint(path.parent / "tiny", tiny_spec("mlp2x_gelu", image_size=56)))
    weights = fused_decoder.HALF if bits == "fp16" else fused_decoder.Weights(32, accuracy=0)
    save(fused_decoder.build(checkpoint, weights), path)


def outputs(session: onnxruntime.InferenceSession, count: int | None) -> dict[str, np.ndarray]:
    """Of a made-up prompt, for so many rows of logits."""
    given = {value.name: value.shape for value in session.get_inputs()}
    hidden = given["inputs_embeds"][-1]
    embeds = torch.randn(1, LENGTH, hidden, generator=torch.Generator().manual_seed(0)).numpy() * 0.02
    inputs = {
        "inputs_embeds": embeds, "attention_mask": np.ones((1, LENGTH), np.int64),
        "position_ids": np.arange(LENGTH)[None], NUM_LOGITS: np.array(count or 0),
    }  # fmt: skip
    return run(session, {name: value for name, value in inputs.items() if name in given} | empty_cache(session))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(traced, "llama:tiny"), (traced, "gpt2:tiny"), (fused, "fp16"), (fused, "int4")],
)
def test_rows_that_are_not_asked_for_are_not_computed(make: object, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    make(path, kind)  # type: ignore[operator]
    head = next(node for node in components.ir.load(path).graph if node.name == HEAD)
    read = str(head.inputs[0].name)  # type: ignore[union-attr]
    session = open_session(path, graph=with_outputs(path, [read]))
    described = next(value for value in session.get_inputs() if value.name == NUM_LOGITS)
    assert (described.type, described.shape) == ("tensor(int64)", [])  # as transformers.js passes it
    whole = outputs(session, 0)
    assert whole["logits"].shape[1] == LENGTH
    for count in (1, 3, LENGTH, 99):
        found = outputs(session, count)
        rows = min(count, LENGTH)
        assert found["logits"].shape[1] == found[read].shape[1] == rows
        np.testing.assert_allclose(found["logits"], whole["logits"][:, -rows:], atol=1e-5)
        np.testing.assert_array_equal(found["present.0.key"], whole["present.0.key"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_genais_decoder_gives_the_last_row_over_the_same_weights(precision: str, onnx_bundle: Bundles) -> None:
    bundle = onnx_bundle(precision)
    ours = bundle / read_manifest(bundle).decoding.file("decoder_model_merged")
    theirs = bundle / ours.name.replace("decoder_model_merged", "decoder")
    sessions = [open_session(path) for path in (ours, theirs)]
    assert NUM_LOGITS not in {value.name for value in sessions[1].get_inputs()}
    assert sessions[1].get_outputs()[0].shape[1] == 1
    expected, found = outputs(sessions[0], 1), outputs(sessions[1], None)
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    assert theirs.stat().st_size < ours.stat().st_size + 10_000
    assert ours.stat().st_size < 0.2 * ours.with_name(f"{ours.name}_data").stat().st_size  # nodes, no weights


def test_a_graph_without_the_input_still_runs(tmp_path: Path) -> None:
    """Bundles of earlier versions give the logits of every position."""
    from vlmexport.runtime.ort.cache import open_cache

    path = tmp_path / "decoder.onnx"
    traced(path, "llama:tiny")
    model = components.ir.load(path)
    kept_rows.last_alone(model)
    model.graph.initializers[NUM_LOGITS].const_value = components.ir.tensor(np.array(0, np.int64), name=NUM_LOGITS)
    save(model, tmp_path / "old.onnx")
    embeds = np.ones((1, LENGTH, 256), np.float32)
    new, old = (open_cache(open_session(tmp_path / name), 9).step(embeds, 2) for name in ("decoder.onnx", "old.onnx"))
    np.testing.assert_allclose(old, new, atol=1e-5)
    assert old.shape[1] == 2
    assert old.base is None
