"""Parameters, operations, bytes and times of a design in one recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from vlmexport.costs.operations import Operations, count
from vlmexport.costs.phones import Phone, Range
from vlmexport.plan import Plan, plan
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint

_FLOATS = ("fp32", "fp16", "f32", "f16", "bf16")
"""Decoders whose products are float; those of quantized ones round their input to int8."""

_FLOAT = 4
"""Int8 operations that take as long as one of float32: an SDOT has 32, an FMLA of the same width 8."""


@dataclass(frozen=True)
class Estimate:
    """Times on a phone: of an image, of the prompt after it, of each further token (None: a class is the answer)."""

    phone: Phone
    image: Range
    prompt: Range
    token: Range | None

    @property
    def first_token(self) -> Range:
        """From an image to the first token."""
        return Range(self.image.low + self.prompt.low, self.image.high + self.prompt.high)

    def facts(self) -> dict[str, Any]:
        """Seconds, [at best, at worst], or None."""
        times = {"image": self.image, "prompt": self.prompt, "token": self.token}
        return {"phone": self.phone.key} | {name: time and [time.low, time.high] for name, time in times.items()}


@dataclass(frozen=True)
class Costs:
    """A checkpoint in one recipe."""

    name: str
    design: str
    parameters: dict[str, int]
    operations: Operations
    plan: Plan
    times: tuple[Estimate, ...]
    """Empty where the recipe refuses the checkpoint."""

    def facts(self) -> dict[str, Any]:
        """In plain data."""
        counted = self.operations
        return self.plan.facts() | {
            "name": self.name,
            "design": self.design,
            "parameters": self.parameters,
            "visual_tokens": counted.visual_tokens,
            "views": counted.views,
            "operations": {"vision": counted.vision, "projector": counted.projector, "prompt": counted.prompt,
                           "token": counted.token, "positions": counted.positions},
            "times": [time.facts() for time in self.times],
        }  # fmt: skip


def estimate(checkpoint: Checkpoint, recipe: Recipe, on: list[Phone]) -> Costs:
    """What a checkpoint would cost; no weights are read.

    Raises:
        Unsupported: an unknown kind of component.
    """
    (planned,) = plan(checkpoint, [recipe])
    checkpoint = checkpoint.within(recipe.max_views)
    counted = _counted(checkpoint.spec)
    times = () if planned.refused else tuple(_times(checkpoint, recipe, planned, counted, phone) for phone in on)
    spec = checkpoint.spec
    parts = (spec.vision.variant or spec.vision.kind, spec.projector.kind, spec.language.kind)
    parameters = {component: checkpoint.parameters(component) for component in COMPONENTS}
    return Costs(spec.name, " + ".join(parts), parameters, counted, planned, times)


_counted = cache(count)


def _times(checkpoint: Checkpoint, recipe: Recipe, planned: Plan, counted: Operations, phone: Phone) -> Estimate:
    vision = 1 if "vision" in recipe.int8_components else _FLOAT
    precision = recipe.onnx.decoder if recipe.format == "onnx" else recipe.gguf.type
    decoder = _FLOAT if precision in _FLOATS else 1
    return Estimate(
        phone,
        image=phone.multiply(vision * (counted.vision + counted.projector)),
        prompt=phone.multiply(decoder * counted.prompt),
        token=phone.read(_read_by_token(checkpoint, planned)) if checkpoint.spec.language.generates else None,
    )


def _read_by_token(checkpoint: Checkpoint, planned: Plan) -> int:
    """Bytes of the decoder's weights, all but the embedding: of that, a token reads one row."""
    part = next(part for part in planned.parts if part.name in ("decoder_model_merged", "language"))
    language = checkpoint.spec.language
    if part.name != "language":  # an ONNX decoder is a graph without the embedding
        return part.bytes
    table = 0 if language.tie_word_embeddings else language.vocab_size * language.hidden_size
    return round(part.bytes * (1 - table / part.weights))
