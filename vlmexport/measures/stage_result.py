"""The five stages by name, what was measured at one, and a gate that was judged by it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

STAGES = ("pixels", "features", "tokens", "logits", "answer")
Mode = Literal["local", "chained"]
MODES: tuple[Mode, ...] = ("local", "chained")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageResult(_Model):
    """What was measured at one stage. ``local``: fed the reference's input. ``chained``: fed its predecessor.

    ``seconds`` is the median of its runs within the check; None where it was not run by itself.
    """

    stage: str
    mode: Mode
    metrics: dict[str, float]
    error: str | None = None
    seconds: float | None = None


class GateResult(_Model):
    """One gate, judged."""

    stage: str
    mode: Mode
    metric: str
    value: float | None
    bound: float
    at_least: bool
    passed: bool
