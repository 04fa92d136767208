"""Σ x·xᵀ of what goes into the layers of a decoder: what GPTQ weighs the errors of rounding with.

Unlike other statistics they are large, columns² a layer, so they go to files of their own, a few layers in every pass
over the samples, and are not kept.
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
from vlmexport.checkpoint import LanguageSpec, Tokenizer
from vlmexport.model import VLM

SAMPLES = 24
"""Samples of a calibration set that are run: each position adds one to the rank."""

MEMORY = 2 * 2**30
"""Bytes of matrices that are held at a time."""


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
    tokenizer: Tokenizer,
    samples: Iterable[Sample],
    folder: Path,
    image_weight: float,
    advance: Callable[[], None] = lambda: None,
    memory: int = MEMORY,
) -> Hessians:
    """Run the samples through the decoder, once for every few layers, and write the matrices to a folder.

    Args:
        image_weight: what an image position weighs against one of text.
        advance: called once a sample.
        memory: bytes of matrices to hold at a time; at least those of one layer are.
    """
    sequences = []
    for sample in samples:
        sequences.append(sequence(vlm, tokenizer, sample))
        advance()
    layers: Any = vlm.language.get_submodule("model.layers")
    step, found = max(1, memory * len(layers) // file_bytes(vlm.spec.language)), Hessians()
    for first in range(0, len(layers), step):
        file = folder / f"hessians-{first}.safetensors"
        watched = {
            f"language.model.layers.{index}.{name}": module
            for index in range(first, min(first + step, len(layers)))
            for name, module in layers[index].named_modules()
            if isinstance(module, nn.Linear)
        }
        inputs = _run(vlm.language, watched, sequences, image_weight)
        save_file(inputs.sums, file)
        found.places.update({path: (file, key) for path, key in inputs.shared.items()})
    return found


def file_bytes(spec: LanguageSpec) -> int:
    """Bytes of the files that ``measure`` writes, to a percent: four inputs a layer are read by linear layers."""
    columns = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.intermediate_size)
    return spec.num_layers * sum(4 * size * size for size in columns)


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


def _run(language: Any, layers: dict[str, nn.Linear], sequences: list[Sequence], image_weight: float) -> _Inputs:
    inputs = _Inputs(image_weight)
    handles = [layer.register_forward_pre_hook(inputs.hook(path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            for tokens in sequences:
                inputs.is_text = tokens.is_text
                language(inputs_embeds=tokens.embeds, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    total = sum(float(torch.where(tokens.is_text, 1.0, image_weight).sum()) for tokens in sequences)
    for matrix in inputs.sums.values():
        matrix /= total
    return inputs
