"""The result of a check, as it is written to ``parity.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Mode = Literal["local", "chained"]
MODES: tuple[Mode, ...] = ("local", "chained")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageResult(_Model):
    """What was measured at one stage. ``local``: fed the reference's input. ``chained``: fed its predecessor."""

    stage: str
    mode: Mode
    metrics: dict[str, float]
    error: str | None = None


class GateResult(_Model):
    """One gate, judged."""

    stage: str
    mode: Mode
    metric: str
    value: float | None
    bound: float
    at_least: bool
    passed: bool


class Answer(_Model):
    """One question, answered by both. ``first_difference`` is a token index; ``margin`` the reference's there."""

    sample: str
    question: str
    expected: str | None
    reference: str
    bundle: str
    equal: bool
    first_difference: int | None = None
    margin: float | None = None


class StockResult(_Model):
    """The bundle as the installed library computes it without our repairs, chained, on the first samples."""

    samples: int
    stages: list[StageResult]
    gates: list[GateResult]
    passed: bool
    broken_stage: str | None


class ParityResult(_Model):
    """``parity.json``. ``stock`` is None where nothing was repaired; with ``strict_stock`` it counts in ``passed``."""

    schema_version: Literal[1] = 1
    bundle: str
    kind: str
    recipe: str
    reference: str
    runtime: str
    notes: list[str]
    samples: int
    images: int
    stages: list[StageResult]
    gates: list[GateResult]
    answers: list[Answer]
    passed: bool
    broken_stage: str | None
    seconds: float
    stock: StockResult | None = None
    strict_stock: bool = False

    def metric(self, stage: str, metric: str, mode: Mode = "chained") -> float | None:
        """One measured value."""
        for result in self.stages:
            if result.stage == stage and result.mode == mode:
                return result.metrics.get(metric)
        return None
