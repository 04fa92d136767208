"""What the float model makes of samples: the values that a bundle's are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlmexport.calibrate import Sample
from vlmexport.processing.image import ProcessedImage
from vlmexport.processing.prompt import Prompt, Seen
from vlmexport.runtime.stages import F32, Features, Runtime

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class ImageValues:
    """The float model's pixels, features and tokens of an image."""

    pixels: ProcessedImage
    features: Features
    tokens: F32

    @property
    def seen(self) -> Seen[F32]:
        """What its language model is given of the image."""
        return Seen(self.tokens, self.pixels.views)


@dataclass(frozen=True)
class QuestionValues:
    """The float model's prompt and its greedy answer: ids, their margins, text.

    ``logits`` f32 [1, tokens of the answer, vocabulary] are those that the answer is taken from.
    """

    prompt: Prompt
    answer: list[int]
    margins: list[float]
    text: str
    logits: F32


class Expected(Protocol):
    """Tells the float model's values, sample by sample in their order."""

    @property
    def name(self) -> str:
        """What computed them, and its version."""

    def image(self, sample: Sample) -> ImageValues:
        """Of a sample's image; asked once an image."""

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        """Of its question, with what was seen of each of its images."""


class Live:
    """The float model itself."""

    def __init__(self, reference: Runtime) -> None:
        self.name = reference.name
        self._reference = reference

    def image(self, sample: Sample) -> ImageValues:
        """Run the first three stages."""
        pixels = self._reference.pixels(sample.image())
        features = self._reference.features(pixels)
        return ImageValues(pixels, features, self._reference.tokens(features))

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        """Run the last two stages."""
        prompt = self._reference.prompt(sample.messages, [one.views for one in seen])
        tokens = [one.tokens for one in seen]
        prompt.room(self._reference.context, f"the prompt of sample {sample.id}")
        steps = list(self._reference.steps(prompt, tokens, MAX_NEW_TOKENS))
        greedy, logits = [token for token, _ in steps], np.concatenate([rows for _, rows in steps])[None]
        answer, margins = [token.id for token in greedy], [token.margin for token in greedy]
        return QuestionValues(prompt, answer, margins, self._reference.decode(answer), logits)
