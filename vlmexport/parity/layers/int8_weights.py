"""Int8 weights held against the float model's: a scale that is off by 1 % moves no gate, but it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.read.int8_layers import Int8Layer
from vlmexport.measures.stage_result import GateResult
from vlmexport.parity.layers.unfolded import Unfolded, unfolded
from vlmexport.parity.result import LayerFault, WeightsResult
from vlmexport.source.checkpoint import Checkpoint

STAGE_OF = {"vision": "features", "projector": "tokens", "language": "logits"}
"""Component, as module paths begin → the stage that its layers compute."""

WRONG = "wrong_layers"
"""The gate: how many layers of a stage hold another weight than the float model."""

EXACT = 0.51
"""Steps between an int8 weight and the float one: rounding explains a half, float32 arithmetic a thousandth."""

ESTIMATED = 1.0
"""The same where what was folded into the weight is estimated from it. A scale that is off by 1 % makes it 1.27."""


def compare_weights(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> WeightsResult | None:
    """Every int8 layer of a bundle's graphs; None where there are none."""
    faults: dict[str, LayerFault] = {}
    compared: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for role, file in manifest.graphs().items():
        smoothed = manifest.smoothed(role)
        wrong: list[LayerFault] = []
        for found in unfolded(bundle / file, smoothed, checkpoint):
            if isinstance(found, str):
                unknown.add(found)
                continue
            path, stage = found.layer.path, stage_of(found.layer.path)
            compared.setdefault(stage, set()).add(path)
            if what := _pair(found.layer) or _distance(found):
                wrong.append(LayerFault(layer=path, stage=stage, what=what))
        faults |= {fault.layer: fault for fault in reversed(wrong)}
    if not compared and not unknown:
        return None
    layers = {stage: len(paths) for stage, paths in compared.items()}
    return WeightsResult(layers=layers, not_compared=sorted(unknown), faults=list(faults.values()))


def weight_gates(result: WeightsResult) -> list[GateResult]:
    """One for each stage that has int8 layers: none of them is wrong."""
    found = []
    for stage in result.layers:
        wrong = sum(fault.stage == stage for fault in result.faults)
        gate = GateResult(
            stage=stage, mode="local", metric=WRONG, value=wrong, bound=0, at_least=False, passed=not wrong
        )
        found.append(gate)
    return found


def stage_of(path: str) -> str:
    """The stage that a layer of the float model computes."""
    return STAGE_OF[path.partition(".")[0]]


def _pair(layer: Int8Layer) -> str | None:
    """Whether the layer reads its input back as it was written."""
    if layer.written == layer.read:
        return None
    said = "its input is written with scale {:.6g} and zero point {}, and read with {:.6g} and {}"
    return said.format(*layer.written, *layer.read)


def _distance(found: Unfolded) -> str | None:
    """Whether a weight is the rounding of the float one."""
    away = (np.abs(found.held - found.weight) / found.step).reshape(len(found.held), -1)
    channels = np.where(np.isfinite(away), away, np.inf).max(1)
    wrong, worst = int((channels > (ESTIMATED if found.is_estimated else EXACT)).sum()), int(channels.argmax())
    if not wrong:
        return None
    return (
        f"{wrong} of {len(channels)} output channels are no rounding of the float weight: channel {worst} is "
        f"{channels[worst]:.3g} steps away from it"
    )
