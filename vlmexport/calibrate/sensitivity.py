"""How much the answer feels an error in what a layer of the decoder puts out: squared gradients over samples.

The gradient is that of the log-likelihood of tokens drawn from the model's own prediction, at the positions where an
answer is decided; its second moments are the Fisher information, and half of it times a squared error is the KL
divergence that the error causes (see ``quantize.allocation``). Moments add up like all statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from vlmexport.calibrate.asked import ask
from vlmexport.calibrate.collect import longest_answer
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import F64
from vlmexport.model import VLM
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.processing.prompt_builder import CheckpointPrompts

SENSITIVE = 24
"""Samples of a calibration set that are run: a backward pass costs as much as three forward ones."""

EMBEDDING = "language.model.embed_tokens"
"""What the table [tokens, hidden] goes by, whatever its name in the model: each token counts alike, for which ones
will be asked for is not known."""


@dataclass
class Moments:
    """Of one layer, per decided position: ``rows`` f64 [outputs] Σg² over tokens, and ``columns`` f64 [inputs], the
    mean x² of its inputs where each token counts as much as the answer feels it."""

    rows: F64
    columns: F64


@dataclass
class Sensitivity:
    """Sums by layer path: Σg² [outputs], Σ‖g‖²x² [inputs]; how many positions were decided, in which samples."""

    gradients: dict[str, F64] = field(default_factory=dict)
    inputs: dict[str, F64] = field(default_factory=dict)
    positions: int = 0
    samples: tuple[str, ...] = ()

    def of(self, path: str) -> Moments | None:
        """Moments of a layer; None where it was not measured."""
        gradients, inputs = self.gradients.get(path), self.inputs.get(path)
        if gradients is None or inputs is None or not self.positions:
            return None
        return Moments(gradients / self.positions, inputs / max(float(gradients.sum()), 1e-300))

    def add(self, path: str, gradients: F64, inputs: F64) -> None:
        """Add the sums of a few tokens."""
        self.gradients[path] = self.gradients.get(path, 0.0) + gradients
        self.inputs[path] = self.inputs.get(path, 0.0) + inputs

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        arrays = {f"{name}/gradients": value for name, value in self.gradients.items()}
        arrays |= {f"{name}/inputs": value for name, value in self.inputs.items()}
        save_file(arrays, path, metadata={"samples": "\n".join(self.samples), "positions": str(self.positions)})

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Read what ``save`` wrote."""
        found = cls()
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, part = key.rpartition("/")
                getattr(found, part)[name] = file.get_tensor(key)
            metadata = file.metadata()
        found.positions, found.samples = int(metadata["positions"]), tuple(metadata["samples"].split("\n"))
        return found


@dataclass
class Sequence:
    """What goes through the decoder, the last ``decided`` positions of which foretell a token of the answer."""

    inputs: DecoderInputs
    decided: int

    @property
    def is_text(self) -> torch.Tensor:
        """bool [positions]: embeddings of tokens, not of an image."""
        return ~self.inputs.is_image


def measure(
    vlm: VLM, prompts: CheckpointPrompts, samples: Iterable[Sample], advance: Callable[[], None] = lambda: None
) -> Sensitivity:
    """Sensitivity of every ``Linear`` of the decoder and of its token embedding. ``advance`` is called twice a sample.

    A sequence is prompt, image and answer: the sample's own where it has one, else the model's.
    """
    found, sequences = Sensitivity(), []
    for sample in samples:
        sequences.append(sequence(vlm, prompts, sample))
        found.samples += (sample.id,)
        advance()
    accumulate(vlm.language, sequences, found, advance)
    return found


def accumulate(
    language: Any, sequences: Iterable[Sequence], found: Sensitivity, advance: Callable[[], None] = lambda: None
) -> None:
    """Add the moments of sequences to ``found``.

    The same tokens are drawn in every run. Activations are computed anew layer by layer on the way back, so memory
    holds those of one layer, and a mapped weight is converted when it is needed.

    Args:
        language: a causal language model of transformers, without dropout.
    """
    generator = torch.Generator().manual_seed(0)
    with _watched(language, found), _recomputing(language):
        for sequence in sequences:
            embeds = sequence.inputs.embeds.clone().requires_grad_(True)
            given = {**sequence.inputs.arguments(), "inputs_embeds": embeds}
            logits = language(**given, use_cache=False, logits_to_keep=sequence.decided).logits[0]
            likely = logits.log_softmax(-1)
            drawn = torch.multinomial(likely.detach().exp(), 1, generator=generator)
            likely.gather(1, drawn).sum().backward()
            assert embeds.grad is not None
            squared = embeds.grad[0].double().square()[sequence.is_text].sum(0)
            tokens = language.get_input_embeddings().weight.shape[0]
            found.add(EMBEDDING, np.full(tokens, float(squared.sum()) / tokens), squared.numpy())
            found.positions += sequence.decided
            advance()


def sequence(vlm: VLM, prompts: CheckpointPrompts, sample: Sample) -> Sequence:
    """A sample as the decoder reads it: prompt, image, and its own answer or, where it has none, the model's. A
    classifier reads no answer."""
    with torch.no_grad():
        asked = ask(vlm, prompts, sample)
        answer: list[int] = []
        if vlm.spec.language.generates and sample.answer is None:
            most = min(longest_answer(vlm), asked.room - 1)
            answer = [token for token, _ in vlm.generate(asked.inputs(vlm), most)]
            answer = answer[:-1] if answer and answer[-1] in vlm.spec.stop_token_ids else answer
        elif vlm.spec.language.generates:
            answer = prompts.tokenizer.encode(sample.answer or "")[: asked.room - 1]
        return Sequence(asked.inputs(vlm, answer), len(answer) + 1)


@contextmanager
def _watched(language: nn.Module, found: Sensitivity) -> Iterator[None]:
    """Hooks that add each layer's moments when the gradient of its output is there."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def watch(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if output.requires_grad:
                x = inputs[0].detach().flatten(0, -2)
                output.register_hook(lambda gradient: add(path, x, gradient.flatten(0, -2)))  # type: ignore[no-untyped-call]

        return watch

    def add(path: str, x: torch.Tensor, gradient: torch.Tensor) -> None:
        squared = gradient.square()
        inputs = squared.sum(1) @ x[-len(squared) :].square()
        found.add(path, squared.sum(0).double().numpy(), inputs.double().numpy())

    linear = [(name, layer) for name, layer in language.named_modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(hook(f"language.{name}")) for name, layer in linear]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recomputing(language: Any) -> Iterator[None]:
    """transformers recomputes only while training; without dropout its models behave alike otherwise."""
    language.activation_checkpointing_enable({"use_reentrant": False})
    language.train()
    try:
        yield
    finally:
        language.eval()
        language.activation_checkpointing_disable()
