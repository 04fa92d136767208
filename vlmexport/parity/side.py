"""One runtime of a bundle beside the float model's values: run, measured, errors kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.checkpoint.tokenizer import Prompt
from vlmexport.errors import VlmExportError
from vlmexport.parity.measured import Measured
from vlmexport.parity.metrics import ArrayMeasure, LogitsMeasure, ShapeDiffersError
from vlmexport.parity.result import MODES, Answer, Mode
from vlmexport.runtime import Runtime
from vlmexport.runtime.stages import F32

MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class ImageValues:
    """The float model's pixels, features and tokens of an image."""

    pixels: F32
    features: F32
    tokens: F32


@dataclass(frozen=True)
class QuestionValues:
    """The float model's prompt, greedy answer (ids, their margins, text), and logits over both."""

    prompt: Prompt
    answer: list[int]
    margins: list[float]
    text: str
    logits: F32


class Side:
    """A stage that raises is recorded as an error of that stage and mode, once.

    Args:
        modes: in which stages are run; without ``local``, only what users get.
    """

    def __init__(self, runtime: Runtime, modes: tuple[Mode, ...] = MODES) -> None:
        self.runtime = runtime
        self.measured = Measured()
        self._modes = modes
        self._tokens: dict[str, F32 | None] = {}

    def image(self, name: str, image: Image.Image, expected: ImageValues) -> None:
        """Run the stages of an image; its visual tokens are kept for the questions about it."""
        self.measured.images.add(name)
        self._tokens[name] = self._chain(image, expected)

    def question(self, sample: Sample, expected: QuestionValues, tokens: F32) -> None:
        """Run the stages of a question about an image that was run; ``tokens`` are the float model's."""
        self.measured.samples += 1
        if "local" in self._modes:
            self._answer(sample, "local", expected.prompt, tokens, expected)
        own_tokens = self._tokens[sample.image_id]
        if own_tokens is None:
            self.measured.errors.setdefault(("logits", "chained"), "not run: there are no tokens")
            self.measured.errors.setdefault(("answer", "chained"), "not run: there are no tokens")
            return
        try:
            own = self.runtime.prompt(sample.question)
        except VlmExportError as error:
            self.measured.errors.setdefault(("logits", "chained"), str(error))
            return
        self._answer(sample, "chained", own, own_tokens, expected)

    def _chain(self, image: Image.Image, expected: ImageValues) -> F32 | None:
        """The visual tokens that the bundle itself makes of an image."""
        local, runtime = None, self.runtime
        if "local" in self._modes:
            local = self._try("features", "local", lambda: runtime.features(expected.pixels), expected.features)
            self._try("tokens", "local", lambda: runtime.tokens(expected.features), expected.tokens)
        pixels = self._try("pixels", "chained", lambda: runtime.pixels(image), expected.pixels)
        if pixels is None:
            return None
        if local is not None and np.array_equal(pixels, expected.pixels):  # the same input once more
            features = self._try("features", "chained", lambda: local, expected.features)
        else:
            features = self._try("features", "chained", lambda: runtime.features(pixels), expected.features)
        if features is None:
            return None
        return self._try("tokens", "chained", lambda: runtime.tokens(features), expected.tokens)

    def _try(self, stage: str, mode: Mode, compute: Callable[[], F32], reference: F32) -> F32 | None:
        """Compute an array and measure it against the reference's; None when it could not be had."""
        if (stage, mode) in self.measured.errors:
            return None
        try:
            value = compute()
            self.measured.arrays.setdefault((stage, mode), ArrayMeasure()).add(reference, value)
        except (VlmExportError, ShapeDiffersError) as error:
            self.measured.errors[stage, mode] = str(error)
            return None
        return value

    def _answer(self, sample: Sample, mode: Mode, prompt: Prompt, tokens: F32, expected: QuestionValues) -> None:
        answer, margins = expected.answer, expected.margins
        whole = Prompt(prompt.text, prompt.before, (*prompt.after, *answer[:-1]))
        try:
            logits = self.runtime.logits(whole, tokens)
            self.measured.logits.setdefault(mode, LogitsMeasure()).add(expected.logits, logits, answer)
        except (VlmExportError, ShapeDiffersError) as error:
            self.measured.errors.setdefault(("logits", mode), str(error))
        try:
            ids = [token.id for token in self.runtime.generate(prompt, tokens, MAX_NEW_TOKENS)]
            text = self.runtime.decode(ids)
        except VlmExportError as error:
            self.measured.errors.setdefault(("answer", mode), str(error))
            return
        length = max(len(ids), len(answer))
        different = [i for i in range(length) if ids[i : i + 1] != answer[i : i + 1]]
        first = different[0] if different else None
        self.measured.answers[mode].append(
            Answer(
                sample=sample.id, question=sample.question, expected=sample.answer, reference=expected.text,
                bundle=text, equal=not different, first_difference=first,
                margin=margins[first] if first is not None and first < len(margins) else None,
            )
        )  # fmt: skip
