"""Run reference and bundle over samples, stage by stage, local and chained, and measure the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from vlmexport.calibrate import Sample
from vlmexport.checkpoint.tokenizer import Prompt
from vlmexport.errors import VlmExportError
from vlmexport.parity.measured import Measured
from vlmexport.parity.metrics import ArrayMeasure, LogitsMeasure, ShapeDiffersError
from vlmexport.parity.result import Answer, Mode
from vlmexport.runtime import Runtime
from vlmexport.runtime.stages import F32, Reference

MAX_NEW_TOKENS = 64


class Comparison:
    """Reference against bundle. A stage that raises is recorded as an error of that stage and mode, once."""

    def __init__(self, reference: Reference, bundle: Runtime) -> None:
        self.reference = reference
        self.bundle = bundle
        self.measured = Measured()
        self._tokens: dict[str, tuple[F32, F32 | None]] = {}

    def run(self, samples: Iterable[Sample], advance: Callable[[], None] = lambda: None) -> None:
        """Compare over samples; images that several samples share are computed once."""
        for sample in samples:
            if sample.image_id not in self._tokens:
                self._tokens[sample.image_id] = self._image(sample)
                self.measured.images.add(sample.image_id)
            self._question(sample, *self._tokens[sample.image_id])
            self.measured.samples += 1
            advance()

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

    def _image(self, sample: Sample) -> tuple[F32, F32 | None]:
        """The reference's visual tokens of an image, and those of the bundle's own chain."""
        image = sample.image()
        pixels = self.reference.pixels(image)
        features = self.reference.features(pixels)
        tokens = self.reference.tokens(features)
        local = self._try("features", "local", lambda: self.bundle.features(pixels), features)
        self._try("tokens", "local", lambda: self.bundle.tokens(features), tokens)
        own_pixels = self._try("pixels", "chained", lambda: self.bundle.pixels(image), pixels)
        if own_pixels is None:
            return tokens, None
        if local is not None and np.array_equal(own_pixels, pixels):  # the same input once more
            own_features = self._try("features", "chained", lambda: local, features)
        else:
            own_features = self._try("features", "chained", lambda: self.bundle.features(own_pixels), features)
        if own_features is None:
            return tokens, None
        return tokens, self._try("tokens", "chained", lambda: self.bundle.tokens(own_features), tokens)

    def _question(self, sample: Sample, tokens: F32, own_tokens: F32 | None) -> None:
        prompt = self.reference.prompt(sample.question)
        greedy, expected = self.reference.answer(prompt, tokens, MAX_NEW_TOKENS)
        answer = [token.id for token in greedy]
        whole = Prompt(prompt.text, prompt.before, (*prompt.after, *answer[:-1]))
        margins = [token.margin for token in greedy]
        self._answer(sample, "local", prompt, whole, tokens, expected, answer, margins)
        if own_tokens is None:
            self.measured.errors.setdefault(("logits", "chained"), "not run: there are no tokens")
            self.measured.errors.setdefault(("answer", "chained"), "not run: there are no tokens")
            return
        try:
            own = self.bundle.prompt(sample.question)
        except VlmExportError as error:
            self.measured.errors.setdefault(("logits", "chained"), str(error))
            return
        own_whole = Prompt(own.text, own.before, (*own.after, *answer[:-1]))
        self._answer(sample, "chained", own, own_whole, own_tokens, expected, answer, margins)

    def _answer(
        self, sample: Sample, mode: Mode, prompt: Prompt, whole: Prompt, tokens: F32,
        expected: F32, answer: list[int], margins: list[float],
    ) -> None:  # fmt: skip
        try:
            logits = self.bundle.logits(whole, tokens)
            self.measured.logits.setdefault(mode, LogitsMeasure()).add(expected, logits, answer)
        except (VlmExportError, ShapeDiffersError) as error:
            self.measured.errors.setdefault(("logits", mode), str(error))
        try:
            ids = [token.id for token in self.bundle.generate(prompt, tokens, MAX_NEW_TOKENS)]
            text = self.bundle.decode(ids)
        except VlmExportError as error:
            self.measured.errors.setdefault(("answer", mode), str(error))
            return
        length = max(len(ids), len(answer))
        different = [i for i in range(length) if ids[i : i + 1] != answer[i : i + 1]]
        first = different[0] if different else None
        self.measured.answers[mode].append(
            Answer(
                sample=sample.id, question=sample.question, expected=sample.answer,
                reference=self.reference.decode(answer), bundle=text, equal=not different,
                first_difference=first, margin=margins[first] if first is not None and first < len(margins) else None,
            )
        )  # fmt: skip
