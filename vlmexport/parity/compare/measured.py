"""What a comparison has measured, apart from the runtimes it ran: measures of two sets of samples can be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from vlmexport.measures.arrays import F64, ArrayMeasure
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.measures.stage_result import MODES, Mode, StageResult
from vlmexport.parity.compare.tasks import answer_metrics
from vlmexport.parity.result import Answer
from vlmexport.processing.prompt import Grids

_IMAGE_STAGES = ("pixels", "features", "tokens")
SHOWN = 256
"""Images whose rows are kept: the worst, and enough of the first to find one in the middle."""


@dataclass(frozen=True)
class Rows:
    """How well the rows of an image arrived.

    Attributes:
        cosines: stage → view → cosine of each row.
        grids: how the visual tokens of each view lie.
    """

    cosines: Mapping[str, Sequence[F64]] = field(default_factory=dict)
    grids: Grids = ()

    @property
    def mean(self) -> float:
        """Of the last stage that was run; there must be one."""
        return float(np.concatenate([*self.cosines.values()][-1]).mean())


@dataclass
class Measured:
    """Measures, answers and errors by stage and mode, over ``samples`` samples of ``images``.

    Attributes:
        images: the rows of each image, chained; none where ``SHOWN`` others have theirs.
        seconds: of each run of a stage by itself.
        clients: of the pixels that each client makes, by its name.
    """

    arrays: dict[tuple[str, Mode], ArrayMeasure] = field(default_factory=dict)
    logits: dict[Mode, LogitsMeasure] = field(default_factory=dict)
    answers: dict[Mode, list[Answer]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    errors: dict[tuple[str, Mode], str] = field(default_factory=dict)
    images: dict[str, Rows] = field(default_factory=dict)
    samples: int = 0
    seconds: dict[tuple[str, Mode], list[float]] = field(default_factory=dict)
    clients: dict[str, ArrayMeasure] = field(default_factory=dict)

    def __add__(self, other: Measured) -> Measured:
        """Of both sample sets; an error of either is one of the whole."""
        both = Measured(
            {
                key: self.arrays.get(key, ArrayMeasure()) + other.arrays.get(key, ArrayMeasure())
                for key in {**self.arrays, **other.arrays}
            },
            {
                mode: self.logits.get(mode, LogitsMeasure()) + other.logits.get(mode, LogitsMeasure())
                for mode in {**self.logits, **other.logits}
            },
            {mode: self.answers[mode] + other.answers[mode] for mode in MODES},
            other.errors | self.errors,
            self.images | other.images,
            self.samples + other.samples,
            {key: self.seconds.get(key, []) + other.seconds.get(key, []) for key in {**self.seconds, **other.seconds}},
            {
                name: self.clients.get(name, ArrayMeasure()) + other.clients.get(name, ArrayMeasure())
                for name in {**self.clients, **other.clients}
            },
        )
        both._forget_rows()
        return both

    def image(self, name: str, rows: Rows) -> None:
        """Add an image that was run."""
        self.images[name] = rows
        self._forget_rows()

    def _forget_rows(self) -> None:
        """Of the latest images, but not of the worst: its tokens' mean cosine (else its features') is the least."""
        known = {image: rows.mean for image, rows in self.images.items() if rows.cosines}
        if len(known) > SHOWN:
            worst = min(known, key=lambda image: known[image])
            for image in [image for image in known if image != worst][SHOWN - 1 :]:
                self.images[image] = Rows()

    def in_order(self, ids: Sequence[str]) -> Measured:
        """With the answers in the order of the samples' ids."""
        place = {name: number for number, name in enumerate(ids)}
        for rows in self.answers.values():
            rows.sort(key=lambda row: place[row.sample])
        return self

    def stages(self) -> list[StageResult]:
        """What was measured, in the order of the stages."""
        results = []
        for stage in _IMAGE_STAGES:
            for mode in MODES:
                measure, error = self.arrays.get((stage, mode)), self.errors.get((stage, mode))
                if measure is not None or error is not None:
                    metrics = measure.metrics() if measure is not None and measure.cosines.count else {}
                    if (stage, mode) == ("pixels", "chained"):
                        metrics |= {f"{name}_max_abs": one.max_abs for name, one in self.clients.items()}
                    results.append(self._result(stage, mode, metrics, error))
        for mode in MODES:
            logits, error = self.logits.get(mode), self.errors.get(("logits", mode))
            metrics = logits.metrics() if logits is not None and logits.kld else {}
            results.append(self._result("logits", mode, metrics, error))
        for mode in MODES:
            rows, error = self.answers[mode], self.errors.get(("answer", mode))
            results.append(self._result("answer", mode, answer_metrics(rows) if rows else {}, error))
        return results

    def _result(self, stage: str, mode: Mode, metrics: dict[str, float], error: str | None) -> StageResult:
        taken = self.seconds.get((stage, mode))
        return StageResult(
            stage=stage, mode=mode, metrics=metrics, error=error, seconds=median(taken) if taken else None
        )
