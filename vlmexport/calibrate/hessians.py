"""Σ x·xᵀ of what goes into the layers of a decoder: what GPTQ weighs the errors of rounding with.

Unlike other statistics they are large, columns² a layer, so they go to files of their own and are not kept. All samples
go through one layer before the next: memory holds one layer's matrices, and each weight is used in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.sensitivity import Sequence, sequence
from vlmexport.calibrate.statistics import F32
from vlmexport.model import VLM
from vlmexport.model.sketch import prefix
from vlmexport.processing.prompt_builder import CheckpointPrompts

SAMPLES = 24
"""Samples of a calibration set that are run: each position adds one to the rank."""


@dataclass(frozen=True)
class Hessians:
    """Layer path → file and key of f32 [columns, columns], mean x·xᵀ; layers that read one value share one."""

    places: dict[str, tuple[Path, str]] = field(default_factory=dict)

    def of(self, path: str) -> F32 | None:
        """The matrix of a layer; None where it was not measured."""
        if path not in self.places:
            return None
        file, key = self.places[path]
        with safe_open(file, framework="np") as opened:
            found: F32 = opened.get_tensor(key)
        return found


def measure(
    vlm: VLM,
    prompts: CheckpointPrompts,
    samples: Iterable[Sample],
    folder: Path,
    image_weight: float,
    advance: Callable[[], None] = lambda: None,
) -> Hessians:
    """Run the samples through the decoder layer by layer, and write the matrices to a folder, a file a layer.

    Args:
        image_weight: what an image position weighs against one of text.
        advance: called once a sample, and once a layer.
    """
    sequences, states = [], []
    for sample in samples:
        sequences.append(sequence(vlm, prompts, sample))
        states.append(_before_layers(vlm, sequences[-1]))
        advance()
    found = Hessians()
    for index, layer in enumerate(_layers(vlm)):
        inputs = _run(layer, f"{prefix(vlm.spec, 'language')}{index}", sequences, states, image_weight)
        file = folder / f"hessians-{index}.safetensors"
        save_file(inputs.sums, file)
        found.places.update({path: (file, key) for path, key in inputs.shared.items()})
        advance()
    return found


class _Inputs:
    """Sums by the first layer that reads a value, and which layer that is for the others."""

    def __init__(self, image_weight: float) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.shared: dict[str, str] = {}
        self.is_text = torch.ones(0, dtype=torch.bool)
        self._weight = image_weight
        self._last: tuple[torch.Tensor | None, str] = (None, "")

    def hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Adds what a layer reads."""

        def add(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if x is self._last[0]:
                self.shared[path] = self._last[1]
                return
            self._last = (x, path)
            self.shared[path] = path
            rows = x.detach().flatten(0, -2).float()
            weighed = rows * torch.where(self.is_text, 1.0, self._weight)[:, None]
            total = self.sums.setdefault(path, torch.zeros(rows.shape[1], rows.shape[1]))
            total.addmm_(weighed.T, rows)

        return add


@dataclass
class _State:
    """What the next layer is given: f32 [1, tokens, hidden], and the mask, positions and so on that all share."""

    hidden: torch.Tensor
    others: dict[str, Any]


class _Stop(Exception):
    """Ends a forward pass before the first layer."""


def _layers(vlm: VLM) -> Any:
    return vlm.get_submodule(prefix(vlm.spec, "language").removesuffix("."))


def _before_layers(vlm: VLM, tokens: Sequence) -> _State:
    """The state of a sequence that no layer has seen."""
    states = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], others: dict[str, Any]) -> None:
        states.append(_State(inputs[0], others))
        raise _Stop

    handle = _layers(vlm)[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            vlm.language(**tokens.inputs.arguments(), use_cache=False, logits_to_keep=1)
    except _Stop:
        return states[0]
    finally:
        handle.remove()
    raise AssertionError


def _run(layer: nn.Module, path: str, sequences: list[Sequence], states: list[_State], image_weight: float) -> _Inputs:
    """Take all states through a layer, in place."""
    inputs = _Inputs(image_weight)
    handles = [
        module.register_forward_pre_hook(inputs.hook(f"{path}.{name}"))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            for tokens, state in zip(sequences, states, strict=True):
                inputs.is_text = tokens.is_text
                state.hidden = layer(state.hidden, **state.others)
    finally:
        for handle in handles:
            handle.remove()
    total = sum(float(torch.where(tokens.is_text, 1.0, image_weight).sum()) for tokens in sequences)
    for matrix in inputs.sums.values():
        matrix /= total
    return inputs
