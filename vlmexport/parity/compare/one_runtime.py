"""One runtime of a bundle beside the float model's values: run, measured, errors kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.errors import VlmExportError
from vlmexport.measures.arrays import F64, ArrayMeasure, ShapeDiffersError
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.measures.stage_result import MODES, Mode
from vlmexport.parity.compare.answers import answered, other_end
from vlmexport.parity.compare.clients import Client
from vlmexport.parity.compare.measured import Measured, Rows
from vlmexport.parity.compare.prompts import difference
from vlmexport.parity.reference.values import MAX_NEW_TOKENS, ImageValues, QuestionValues
from vlmexport.processing.image import ProcessedImage
from vlmexport.processing.prompt import Prompt, Seen
from vlmexport.runtime import Runtime
from vlmexport.runtime.stages import F32, Features

Value = TypeVar("Value", ProcessedImage, Features, F32)
"""What one of the first three stages gives."""

_SAME = 1e-6
"""Difference of normalised pixels that is the same picture: float32 rounds otherwise. A level of 255 is 0.015."""


class Side:
    """A stage that raises is recorded as an error of that stage and mode, once.

    Args:
        modes: in which stages are run; without ``local``, only what users get.
        clients: who makes pixels of it, too; chained stages are fed by the first. Where there are none, the runtime is
            what clients run.
        goes_on: a picture that it refuses is recorded, and the next one is run all the same.

    Attributes:
        values: what the last image or question gave, chained: stage → array (of ``answer``, the token ids).
    """

    def __init__(
        self,
        runtime: Runtime,
        modes: tuple[Mode, ...] = MODES,
        clients: Sequence[Client] = (),
        *,
        goes_on: bool = False,
    ) -> None:
        self.runtime, self._clients, self._goes_on = runtime, clients, goes_on
        self.measured = Measured()
        self.values: dict[str, npt.NDArray[Any]] = {}
        self._modes = modes
        self._seen: dict[str, Seen[F32] | None] = {}

    def image(self, name: str, image: Image.Image, expected: ImageValues) -> None:
        """Run the stages of an image; its visual tokens are kept for the questions about it, until ``forget``."""
        self.values = {}
        cosines: dict[str, list[F64]] = {}
        self._seen[name] = self._chain(image, expected, cosines)
        self.measured.image(name, Rows(cosines, expected.pixels.views.grids))

    def forget(self, name: str) -> None:
        """There are no more questions about an image."""
        self._seen.pop(name, None)
        self.values = {}

    def question(self, sample: Sample, expected: QuestionValues, tokens: Sequence[F32]) -> None:
        """Run the stages of a question about an image that was run; ``tokens`` are the float model's."""
        self.values = {}
        self.measured.samples += 1
        if "local" in self._modes:
            self._answer(sample, "local", expected.prompt, tokens, expected)
        made = [self._seen[one.image_id] for one in sample.alone()]
        seen = [one for one in made if one is not None]
        if len(seen) < len(made):
            self.measured.errors.setdefault(("logits", "chained"), "not run: there are no tokens")
            self.measured.errors.setdefault(("answer", "chained"), "not run: there are no tokens")
            return
        try:
            own = self.runtime.prompt(sample.messages, [one.views for one in seen])
        except VlmExportError as error:
            self.measured.errors.setdefault(("logits", "chained"), str(error))
            return
        if other := difference(expected.prompt, own):
            self.measured.errors.setdefault(("logits", "chained"), other)
        self._answer(sample, "chained", own, [one.tokens for one in seen], expected)

    def pixels(self, image: Image.Image, expected: ProcessedImage) -> ProcessedImage | None:
        """Run the first stage alone: the pixels that the others are fed. What the runtime makes of the image and what
        its first client does are one measure; every client has one of its own, too."""
        made = self._try("pixels", "chained", lambda: self.runtime.pixels(image), expected)
        if made is None or not self._clients:
            return made
        found = []
        for client in self._clients:
            try:
                found.append(client.pixels(image))
                self.measured.clients.setdefault(client.name, ArrayMeasure()).add(expected.pixel_values, found[-1])
            except (VlmExportError, ShapeDiffersError) as error:
                self.measured.errors["pixels", "chained"] = str(error)
                return None
        return self._try("pixels", "chained", lambda: made.with_pixels(found[0]), expected, is_run=False)

    def _chain(self, image: Image.Image, expected: ImageValues, cosines: dict[str, list[F64]]) -> Seen[F32] | None:
        """What the bundle itself sees of an image; ``cosines`` get those of each row, by stage and view."""
        local, runtime = None, self.runtime
        if "local" in self._modes:
            local = self._try("features", "local", lambda: runtime.features(expected.pixels), expected.features)
            self._try("tokens", "local", lambda: runtime.tokens(expected.features), expected.tokens)
        pixels = self.pixels(image, expected.pixels)
        if pixels is None:
            return None
        if _is_same(pixels, expected.pixels):
            pixels = expected.pixels
        if local is not None and pixels is expected.pixels:  # the same input once more
            features = self._try("features", "chained", lambda: local, expected.features, is_run=False)
        else:
            features = self._try("features", "chained", lambda: runtime.features(pixels), expected.features)
        if features is None:
            return None
        cosines["features"] = self._by_view("features", [len(view) for view in features.views])
        tokens = self._try("tokens", "chained", lambda: runtime.tokens(features), expected.tokens)
        if tokens is None:
            return None
        cosines["tokens"] = self._by_view("tokens", [rows * columns for rows, columns in pixels.views.grids])
        return Seen(tokens, pixels.views)

    def _by_view(self, stage: str, lengths: Sequence[int]) -> list[F64]:
        """Cosines of what was measured last, view by view."""
        return np.split(self.measured.arrays[stage, "chained"].last, np.cumsum(lengths)[:-1])

    def _try(
        self, stage: str, mode: Mode, compute: Callable[[], Value], reference: Value, is_run: bool = True
    ) -> Value | None:
        """Compute what a stage gives and measure its arrays against the reference's; None when it could not be had.

        Args:
            is_run: False where the value is known already, so that its time says nothing.
        """
        if (stage, mode) in self.measured.errors and not (self._goes_on and stage == "pixels"):
            return None
        try:
            start = time.perf_counter()
            value = compute()
            if is_run:
                self._took(stage, mode, start)
            measure = self.measured.arrays.setdefault((stage, mode), ArrayMeasure())
            for theirs, ours in _pairs(reference, value):
                measure.add(theirs, ours)
        except (VlmExportError, ShapeDiffersError) as error:
            self.measured.errors.setdefault((stage, mode), str(error))
            return None
        self._keep(stage, mode, ours)
        return value

    def _took(self, stage: str, mode: Mode, start: float) -> None:
        self.measured.seconds.setdefault((stage, mode), []).append(time.perf_counter() - start)

    def _answer(
        self, sample: Sample, mode: Mode, prompt: Prompt, tokens: Sequence[F32], expected: QuestionValues
    ) -> None:
        """Decode greedily, and measure the logits over the float model's answer.

        Where both answers are the same, decoding has computed these logits on its way.
        """
        try:
            ids, rows = self._decode(mode, prompt, tokens)
            text = self.runtime.decode(ids)
        except VlmExportError as error:
            for stage in ("logits", "answer"):
                self.measured.errors.setdefault((stage, mode), str(error))
            return
        self._keep("answer", mode, np.array(ids))
        divergence = self._logits(mode, prompt, tokens, expected, rows if ids == expected.answer else None)
        if end := other_end(ids, expected.answer):
            self.measured.errors.setdefault(("answer", mode), end)
        self.measured.answers[mode].append(answered(sample, expected, ids, text, divergence))

    def _decode(self, mode: Mode, prompt: Prompt, tokens: Sequence[F32]) -> tuple[list[int], F32]:
        """Ids of the greedy answer, and the logits [1, tokens of the answer, vocabulary] that they are taken from."""
        ids: list[int] = []
        rows, start = [], time.perf_counter()
        for token, logits in self.runtime.steps(prompt, tokens, MAX_NEW_TOKENS):
            if not ids:
                self._took("logits", mode, start)
            if not np.isfinite(logits).all():
                raise VlmExportError("logits are not finite", "see where with --bisect")
            ids.append(token.id)
            rows.append(logits)
        self._took("answer", mode, start)
        return ids, np.concatenate(rows)[None]

    def _logits(
        self, mode: Mode, prompt: Prompt, tokens: Sequence[F32], expected: QuestionValues, logits: F32 | None
    ) -> float | None:
        """Measure the logits over the float model's answer; their mean KL divergence is returned.

        Args:
            logits: they, where they are known; else they are computed.
        """
        try:
            if logits is None:
                whole = prompt.answered(expected.answer[:-1])
                logits = self.runtime.logits(whole, tokens, len(expected.answer))
            self._keep("logits", mode, logits)
            measure = self.measured.logits.setdefault(mode, LogitsMeasure())
            divergence = measure.add(expected.logits, logits, expected.answer)
        except (VlmExportError, ShapeDiffersError) as error:
            self.measured.errors.setdefault(("logits", mode), str(error))
            return None
        return float(divergence.mean())

    def _keep(self, stage: str, mode: Mode, value: npt.NDArray[Any]) -> None:
        if mode == "chained":
            self.values[stage] = value


def _pairs(reference: Value, other: Value) -> list[tuple[F32, F32]]:
    """What is compared with what: pixels by the names of their arrays, features view by view, tokens as they are.

    Raises:
        ShapeDiffersError: one of them lacks an array or a view, or a view has another number of patches.
    """
    if isinstance(reference, ProcessedImage) and isinstance(other, ProcessedImage):
        if reference.arrays.keys() != other.arrays.keys():
            raise ShapeDiffersError(f"arrays {sorted(other.arrays)}, the reference has {sorted(reference.arrays)}")
        return [(reference.arrays[name], array) for name, array in other.arrays.items()]
    if isinstance(reference, Features) and isinstance(other, Features):
        ours, theirs = ([list(view.shape) for view in features.views] for features in (other, reference))
        if ours != theirs:
            raise ShapeDiffersError(f"views of the shapes {ours}, the reference has {theirs}")
        return [(reference.rows, other.rows)]
    assert isinstance(reference, np.ndarray)
    assert isinstance(other, np.ndarray)
    return [(reference, other)]


def _is_same(ours: ProcessedImage, theirs: ProcessedImage) -> bool:
    """Whether two say the same of a picture, beside how float32 rounds."""
    return all(np.allclose(one, other, rtol=0, atol=_SAME) for one, other in _pairs(theirs, ours))
