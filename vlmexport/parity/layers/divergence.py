"""A bundle's layers beside the float model's: every component is fed what the float model feeds it, and the end of each
of its layers is compared with the module's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlmexport.artifact.onnx.read.layer_outputs import Boundary
from vlmexport.calibrate import Sample
from vlmexport.calibrate.asked import ask
from vlmexport.measures.arrays import ArrayMeasure, ShapeDiffersError
from vlmexport.model import VLM
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.parity.layers.int8_weights import stage_of
from vlmexport.parity.result import LayerDifference
from vlmexport.processing.prompt_builder import CheckpointPrompts
from vlmexport.runtime.layers import NUM_LOGITS_TO_KEEP, Component, Layers
from vlmexport.runtime.stages import F32

COMPONENTS: tuple[Component, ...] = ("vision", "projector", "language")
AT_ONCE = 64
"""Layers that are held in memory together."""


def differences(layers: Layers, vlm: VLM, prompts: CheckpointPrompts, sample: Sample) -> list[LayerDifference]:
    """Layer by layer in the order in which they run, the stage itself (``vision``, ``projector``, ``language``) behind
    its layers."""
    found: list[LayerDifference] = []
    for component, given in _given(vlm, prompts, sample):
        ends = [end for end in layers.ends(component) if _has(vlm, end.path)]
        array = (given.embeds if isinstance(given, DecoderInputs) else given).numpy()
        for start in range(0, len(ends), AT_ONCE):
            part = ends[start : start + AT_ONCE]
            values = layers.values(component, array, part)
            expected = _expected(vlm, component, given, part)
            for end, value in zip(part, values, strict=True):
                if end.path in expected and value.size:
                    both = expected[end.path], value
                    found.append(_compared(end.path, *(_last_rows(*both) if component == "language" else both)))
    return found


def _given(
    vlm: VLM, prompts: CheckpointPrompts, sample: Sample
) -> Iterator[tuple[Component, torch.Tensor | DecoderInputs]]:
    """What the float model gives each component: pixels of the first view, its features, embeddings of all."""
    with torch.inference_mode():
        pixels = vlm.pixels(sample.image())[:1]
        features = vlm.features(pixels).contiguous()
        inputs = ask(vlm, prompts, sample).inputs(vlm)
    yield from (("vision", pixels), ("projector", features), ("language", inputs))


def _has(vlm: VLM, path: str) -> bool:
    try:
        vlm.get_submodule(path)
    except AttributeError:
        return False
    return True


def _expected(vlm: VLM, component: Component, given: Any, ends: Sequence[Boundary]) -> dict[str, F32]:
    """What the modules give when the float model runs, by path; the stage's output by the component's name."""
    found: dict[str, F32] = {}
    handles = []
    for end in ends:

        def keep(module: nn.Module, _: Any, output: Any, end: Boundary = end) -> None:
            if isinstance(output, torch.Tensor):
                found[end.path] = _as_in_graph(module, output, end).contiguous().numpy()

        if end.path != component:
            handles.append(vlm.get_submodule(end.path).register_forward_hook(keep))
    logits = partial(vlm.logits, num_logits_to_keep=NUM_LOGITS_TO_KEEP)
    stage: Any = {"vision": vlm.features, "projector": vlm.tokens, "language": logits}[component]
    try:
        with torch.inference_mode():
            found[component] = stage(given).contiguous().numpy()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _as_in_graph(module: nn.Module, output: torch.Tensor, end: Boundary) -> torch.Tensor:
    """A module's output where the graph's layer ends."""
    bias = getattr(module, "bias", None)
    if end.without_bias and bias is not None:
        output = output - (bias[:, None, None] if isinstance(module, nn.Conv2d) else bias)
    if end.channels_last:
        output = output.movedim(1, -1)
    if end.heads:
        halves = output.reshape(*output.shape[:-1], end.heads, 2, -1)
        output = halves.transpose(-1, -2).reshape(output.shape)
    return output


def _last_rows(expected: F32, found: F32) -> tuple[F32, F32]:
    """Of the positions that both have: one of them may have computed the last ones alone."""
    if expected.ndim < 2 or found.shape[-1:] != expected.shape[-1:]:
        return expected, found
    rows = [values.reshape(-1, values.shape[-1]) for values in (expected, found)]
    kept = min(map(len, rows))
    return rows[0][-kept:], rows[1][-kept:]


def _compared(path: str, expected: F32, found: F32) -> LayerDifference:
    stage, measure = stage_of(path), ArrayMeasure()
    if expected.size == found.size:
        found = found.reshape(expected.shape)
    try:
        measure.add(expected, found)
    except ShapeDiffersError as error:
        return LayerDifference(layer=path, stage=stage, nmse=None, note=str(error))
    if not measure.finite:
        return LayerDifference(layer=path, stage=stage, nmse=None, note="values that are not finite")
    return LayerDifference(layer=path, stage=stage, nmse=measure.metrics()["nmse"])
