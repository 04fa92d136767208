"""What a comparison has measured, apart from the runtimes it ran: measures of two sets of samples can be added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlmexport.parity.metrics import ArrayMeasure, LogitsMeasure, paired_drop
from vlmexport.parity.result import MODES, Answer, Mode, StageResult

_IMAGE_STAGES = ("pixels", "features", "tokens")


@dataclass
class Measured:
    """Measures, answers and errors by stage and mode, over ``samples`` samples of ``images``."""

    arrays: dict[tuple[str, Mode], ArrayMeasure] = field(default_factory=dict)
    logits: dict[Mode, LogitsMeasure] = field(default_factory=dict)
    answers: dict[Mode, list[Answer]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    errors: dict[tuple[str, Mode], str] = field(default_factory=dict)
    images: set[str] = field(default_factory=set)
    samples: int = 0

    def __add__(self, other: Measured) -> Measured:
        """Of both sample sets; an error of either is one of the whole."""
        return Measured(
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
        )

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
                    metrics = measure.metrics() if measure is not None and measure.cosines else {}
                    results.append(StageResult(stage=stage, mode=mode, metrics=metrics, error=error))
        for mode in MODES:
            logits, error = self.logits.get(mode), self.errors.get(("logits", mode))
            metrics = logits.metrics() if logits is not None and logits.kld else {}
            results.append(StageResult(stage="logits", mode=mode, metrics=metrics, error=error))
        for mode in MODES:
            rows, error = self.answers[mode], self.errors.get(("answer", mode))
            results.append(
                StageResult(stage="answer", mode=mode, metrics=_answer_metrics(rows) if rows else {}, error=error)
            )
        return results


def _answer_metrics(rows: list[Answer]) -> dict[str, float]:
    """equal (share), and where the expected answer is known accuracy, reference_accuracy, task_drop and its ±."""
    metrics = {"equal": sum(row.equal for row in rows) / len(rows)}
    known = [row for row in rows if row.expected is not None]
    if known:
        reference = [row.reference == row.expected for row in known]
        bundle = [row.bundle == row.expected for row in known]
        metrics["reference_accuracy"] = sum(reference) / len(known)
        metrics["accuracy"] = sum(bundle) / len(known)
        metrics["task_drop"], metrics["task_drop_ci95"] = paired_drop(reference, bundle)
    return metrics
