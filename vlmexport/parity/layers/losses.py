"""Int8 layers ranked by what each costs alone: the float model with one layer as the bundle holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.read.int8_layers import Int8Layer
from vlmexport.calibrate import Sample
from vlmexport.console import Console
from vlmexport.fallback.search import LogitsLoss, TokensLoss
from vlmexport.fallback.simulated import int8_layers
from vlmexport.model import VLM
from vlmexport.parity.layers.int8_weights import stage_of
from vlmexport.parity.layers.unfolded import unfolded
from vlmexport.parity.result import LayerLoss
from vlmexport.quantize.choice import Choice
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import Scheme, find_scheme
from vlmexport.source.checkpoint import Checkpoint


def int8_losses(
    bundle: Path, manifest: Manifest, checkpoint: Checkpoint, vlm: VLM, sample: Sample, console: Console
) -> list[LayerLoss]:
    """NMSE of the visual tokens, or KL divergence of the logits, that each int8 layer causes on one sample; the worst
    first, those of the tokens before those of the logits."""
    layers = _held(bundle, manifest, checkpoint)
    found: list[LayerLoss] = []
    if not layers:
        return found
    tokens = TokensLoss(vlm, checkpoint.prompts, [sample])
    logits = LogitsLoss(vlm, checkpoint.prompts, [sample])
    with console.progress("ranking int8 layers", len(layers)) as advance:
        for path, (choice, weight) in layers.items():
            measure = logits if stage_of(path) == logits.name else tokens
            with int8_layers(vlm, {path: choice}, [path], {path: weight}):
                loss = measure.metrics()[measure.loss]
            found.append(LayerLoss(layer=path, stage=stage_of(path), metric=measure.loss, loss=loss))
            advance()
    return sorted(found, key=lambda layer: (layer.metric != TokensLoss.loss, -layer.loss))


def _held(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> dict[str, tuple[Choice, torch.Tensor]]:
    """Path → input and weight of each int8 layer, as the file holds them and the float model takes them."""
    scheme, found = find_scheme(manifest.recipe.onnx.scheme), {}
    for role, file in manifest.graphs().items():
        for one in unfolded(bundle / file, manifest.smoothed(role), checkpoint):
            if isinstance(one, str) or one.layer.path in found:
                continue
            scales = None if one.scales is None else one.scales.astype(np.float64)
            choice = Choice(_span(one.layer, scheme), scales, one.layer.terms, 0.0, scheme)
            found[one.layer.path] = choice, torch.from_numpy(one.held)
    return found


def _span(layer: Int8Layer, scheme: Scheme) -> Range:
    """The range whose parameters a layer's input is written with."""
    scale, zero = layer.written
    return Range((scheme.activation_min - zero) * scale, (scheme.activation_max - zero) * scale)
