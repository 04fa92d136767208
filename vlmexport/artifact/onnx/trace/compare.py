"""Compare a traced float graph with the PyTorch module that it came from, and with the reference as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmexport.artifact.onnx.session import empty_cache, open_session, rows_to_keep, run
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.errors import ParityFailed
from vlmexport.model import VLM
from vlmexport.processing.prompt import Prompt


def check(traced: Traced, path: Path) -> float:
    """Run a graph's file and its module on every probe.

    Returns:
        The largest relative difference of any output.

    Raises:
        ParityFailed: names the output and the shapes at which it is off.
    """
    session = open_session(path, exact=True)  # whether a graph is right does not depend on this processor
    names = [value.name for value in session.get_inputs()]
    worst = 0.0
    for probe in traced.probes:
        given = dict(zip(names, flat(probe), strict=True))
        with torch.inference_mode():
            expected = traced.module(*probe)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for (name, got), want in zip(run(session, given).items(), expected, strict=False):
            worst = max(worst, _difference(traced.name, name, got, want.numpy(), traced.tolerance))
    return worst


def check_cache(vlm: VLM, path: Path) -> float:
    """A prompt in pieces through the decoder's own cache against the reference's logits over the whole; in one piece
    through a classifier, which has no cache.

    Returns:
        The relative difference.

    Raises:
        ParityFailed: the cache, the mask or the positions are off.
    """
    ids = [vlm.spec.bos_token_id or 0, *range(3, 12)]
    with torch.inference_mode():
        inputs = vlm.inputs(Prompt("", tuple(ids), ()), [])
        embeds, expected = inputs.embeds, vlm.logits(inputs, 0).numpy()
    session = open_session(path)
    cache: dict[str, Any] = empty_cache(session)
    parts, kept = [], rows_to_keep(session, 0)
    pieces = ((0, 6), (6, 7), (7, len(ids))) if vlm.spec.language.generates else ((0, len(ids)),)
    for start, stop in pieces:
        outputs = run(session, {
            "inputs_embeds": embeds[:, start:stop].numpy(), "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None], **kept, **cache,
        })  # fmt: skip
        parts.append(outputs.pop("logits"))
        cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
    return _difference(
        "decoder_model_merged", "logits through the cache", np.concatenate(parts, 1), expected, Traced.tolerance
    )


def _difference(
    graph: str, name: str, got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], tolerance: float
) -> float:
    if got.shape != want.shape or not np.isfinite(got).all():
        raise ParityFailed(
            f"the traced {graph} gives {name} {list(got.shape)}, the float model {list(want.shape)}",
            "this is a bug of vlmexport: report it with the checkpoint's config.json",
        )
    size = float(np.linalg.norm(want))
    off = float(np.linalg.norm(got - want)) / max(size, 1e-12)
    if off > tolerance:
        raise ParityFailed(
            f"the traced {graph} is off: {name} {list(got.shape)} differs by {off:.1e} of its norm",
            "this is a bug of vlmexport: report it with the checkpoint's config.json",
        )
    return off


def flat(probe: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of a probe, in the order of a graph's inputs."""
    if isinstance(probe, torch.Tensor):
        return [probe.numpy()]
    return [array for part in probe for array in flat(part)]
