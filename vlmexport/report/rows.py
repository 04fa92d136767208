"""A parity result in rows, one for each stage and side: what every renderer shows, in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vlmexport.artifact.bundle.card import number
from vlmexport.measures.stage_result import MODES, STAGES, GateResult, StageResult
from vlmexport.parity.layers.int8_weights import WRONG
from vlmexport.parity.result import BaselineResult, Change, CoreResult, ParityResult
from vlmexport.report.places import places

Side = str
"""``local``, ``chained``, ``stock``, or the core of another machine that ran it (chained)."""

Placed = TypeVar("Placed", StageResult, GateResult, Change)
FED: dict[Side, str] = {"local": "reference", "chained": "itself", "stock": "itself, stock"}
"""What a stage was fed, by its side."""

SHOWN = {
    "pixels": ("max_abs", "cosine", "torchvision_max_abs", "transformers_js_max_abs"),
    "features": ("cosine", "cosine_p1", "sqnr_db"),
    "tokens": ("cosine", "cosine_p1", "sqnr_db"),
    "logits": ("kld", "agreement", "top1", "max_abs"),
    "answer": ("agreement", "equal", "accuracy", "f1", "cider_d", "task_drop"),
}
"""The measures of each stage that matter most."""


@dataclass(frozen=True)
class Row:
    """A stage as one side ran it. ``counts`` is False where a failure does not fail the check (unrepaired libraries;
    this machine, where the verdict is that of another's cores).

    Attributes:
        metrics: all that were measured.
        gates: all that were judged.
        changes: measures held against the baseline; empty where there is none.
        old: what the baseline measured.
        places: layers that are known to be wrong.
    """

    stage: str
    side: Side
    metrics: dict[str, float]
    error: str | None
    gates: tuple[GateResult, ...]
    counts: bool = True
    changes: tuple[Change, ...] = ()
    old: dict[str, float] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all gates of the row pass, and nothing got worse than the baseline allows."""
        return all(gate.passed for gate in (*self.gates, *self.changes))

    @property
    def fed(self) -> str:
        """What the stage was fed."""
        return FED.get(self.side, f"itself, on {self.side}")

    @property
    def spared(self) -> str:
        """Why a failure does not count, where it does not."""
        return "not gated without --strict-stock" if self.side == "stock" else "the verdict is that of the cores"

    @property
    def measured(self) -> list[str]:
        """The measures that matter most, or why there are none."""
        return [self.error] if self.error else self._shown(self.metrics) or ["not run"]

    @property
    def before(self) -> list[str]:
        """The same measures of the baseline."""
        return self._shown(self.old)

    def _shown(self, metrics: dict[str, float]) -> list[str]:
        return [f"{name} {number(metrics[name])}" for name in SHOWN[self.stage] if name in metrics]

    @property
    def failures(self) -> list[str]:
        """One sentence for each gate that fails and each regression: its name, measured, allowed; then the layers."""
        found = [sentence(gate) for gate in (*self.gates, *self.changes) if not gate.passed]
        return [*found, *self.places] if found else []


def rows(result: ParityResult) -> list[Row]:
    """In the order of the stages; those of other machines' cores and of the unrepaired library last."""
    here = (result.stages, result.gates, not result.cores)
    found = [row for stage in STAGES for mode in MODES for row in _row(stage, mode, *here)]
    found = [_placed(row, result) if row.side == "local" else row for row in found]
    if result.baseline is not None:
        found = [_beside(row, result.baseline) for row in found]
    for core in result.cores:
        found += [row for stage in STAGES for row in _row(stage, core.core, core.stages, core.gates)]
    if result.stock is not None:
        stages, gates, counts = result.stock.stages, result.stock.gates, result.strict_stock
        found += [row for stage in STAGES for row in _row(stage, "stock", stages, gates, counts)]
    return found


def ran_on(result: ParityResult | CoreResult) -> str:
    """The runtime, and the int8 kernels that it ran."""
    return f"{result.runtime}, int8 by {result.kernels}" if result.kernels else result.runtime


def sentence(gate: GateResult) -> str:
    """Its name, measured and allowed."""
    sign = "≥" if gate.at_least else "≤"
    value = "not measured" if gate.value is None else number(gate.value)
    bound = f"{sign} {number(gate.bound)}"
    if isinstance(gate, Change):
        return f"{gate.metric} is {value}, the baseline's {number(gate.old)} allows {bound}"
    return f"{gate.metric} is {value}, the gate is {bound}"


def _row(
    stage: str, side: Side, stages: Sequence[StageResult], gates: Sequence[GateResult], counts: bool = True
) -> list[Row]:
    """None or one; a stage that did not run has gates all the same."""
    mode = side if side in MODES else "chained"
    measured = _of(stages, stage, mode)
    judged = _of(gates, stage, mode)
    if not measured and not judged:
        return []
    metrics, error = (measured[0].metrics, measured[0].error) if measured else ({}, None)
    return [Row(stage, side, metrics, error, judged, counts)]


def _placed(row: Row, result: ParityResult) -> Row:
    """With the layers that are known to be wrong. Weights are wrong on any machine, so they count where it does not."""
    counts = row.counts or any(gate.metric == WRONG and not gate.passed for gate in row.gates)
    return replace(row, places=places(result, row.stage), counts=counts)


def _beside(row: Row, baseline: BaselineResult) -> Row:
    old = _of(baseline.stages, row.stage, row.side)
    return replace(row, changes=_of(baseline.changes, row.stage, row.side), old=old[0].metrics if old else {})


def _of(found: Sequence[Placed], stage: str, mode: str) -> tuple[Placed, ...]:
    return tuple(one for one in found if (one.stage, one.mode) == (stage, mode))
