"""``--bisect``: the first layer of each stage that diverges, by its name in the float model; what int8 layers cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from vlmexport.artifact.bundle.halves import LLAMA_CPP
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.calibrate import Sample
from vlmexport.console import Console
from vlmexport.model import load
from vlmexport.parity.layers.divergence import differences
from vlmexport.parity.layers.losses import int8_losses
from vlmexport.parity.result import Answer, BisectResult, LayerDifference
from vlmexport.runtime.open import open_layers
from vlmexport.source.checkpoint import Checkpoint

FLOOR = {"fp32": 1e-11, "f32": 1e-11, "fp16": 1e-6, "f16": 1e-6}
"""Precision of the weights → NMSE below which no layer diverges: right graphs stay below 1e-12 and 2e-7."""

MTMD = 1e-6
"""The same of libmtmd, which rounds to float16 inside whatever the weights are."""

QUANTIZED = 0.1
"""The same of quantized weights."""

JUMP = 100.0
"""A layer diverges where its NMSE is so many times the largest before it: rounding grows slowly, a fault does not."""


def bisect(bundle: Path, manifest: Manifest, checkpoint: Checkpoint, sample: Sample, console: Console) -> BisectResult:
    """Compare layer by layer on one sample.

    Raises:
        Unsupported: the runtime does not show its layers.
    """
    vlm, prompts = load(checkpoint), checkpoint.prompts
    console.note(f"looking for the layer, on {sample.id}")
    found: list[LayerDifference] = []
    for part in open_layers(bundle, manifest, checkpoint):
        with closing(part):
            found += differences(part, vlm, prompts, sample)
    losses = int8_losses(bundle, manifest, checkpoint, vlm, sample, console)
    return BisectResult(sample=sample.id, layers=found, first=first_to_diverge(found, floors(manifest)), losses=losses)


def worst(samples: Sequence[Sample], answers: Sequence[Answer]) -> Sample:
    """The sample whose logits differ most; the first one where none was answered."""
    known = {answer.sample: answer.kld for answer in answers if answer.kld is not None}
    return max(samples, key=lambda sample: known.get(sample.id, 0.0))


def floors(manifest: Manifest) -> dict[str, float]:
    """Stage → NMSE below which no layer of it diverges."""
    vision = FLOOR.get(manifest.seeing.precision, QUANTIZED)
    if manifest.seeing.engine == LLAMA_CPP:
        vision = max(vision, MTMD)
    return {
        "features": vision,
        "tokens": vision,
        "logits": FLOOR.get(manifest.decoding.precision, QUANTIZED),
    }


def first_to_diverge(found: Sequence[LayerDifference], floor: dict[str, float]) -> dict[str, str]:
    """Stage → its first layer that diverges: fed by the float model, a stage owes nothing to the one before."""
    first: dict[str, str] = {}
    largest: dict[str, float] = {}
    for layer in found:
        stage = layer.stage
        if stage in first:
            continue
        if layer.nmse is None or layer.nmse > max(floor[stage], JUMP * largest.get(stage, 0.0)):
            first[stage] = layer.layer
        else:
            largest[stage] = max(layer.nmse, largest.get(stage, 0.0))
    return first
