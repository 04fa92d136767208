"""A parity result of several machines side by side: the run here, and each core of the other machine."""

from __future__ import annotations

from rich.table import Table

from vlmexport.artifact.bundle.card import number
from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.result import CoreResult, ParityResult
from vlmexport.report.rows import SHOWN, ran_on

_BESIDE = {"equal": "equal to here", "max_abs": "off from here by"}


def cores(result: ParityResult) -> Table:
    """Each stage fed its predecessor: its measures against the float model, its gates, and how it differs from here."""
    table = Table(title=f"{result.bundle} against {result.reference}", title_justify="left")
    for column in ("stage", "measured", "here", *(core.core for core in result.cores), "gate"):
        table.add_column(column)
    for stage in (stage for stage in result.stages if stage.mode == "chained"):
        for metric in SHOWN[stage.stage]:
            if metric in stage.metrics or stage.error:
                _measured(table, stage, metric, result)
        for metric, label in _BESIDE.items():
            found = [_of(core.beside, stage.stage) for core in result.cores]
            if any(metric in one.metrics for one in found):
                table.add_row(stage.stage, label, "", *(_cell(one, metric) for one in found), "", style="dim")
        table.add_section()
    return table


def summary(core: CoreResult) -> str:
    """One line."""
    said = "passes" if core.passed else f"FAILS at {core.broken_stage}"
    return f"{said} on {ran_on(core)}"


def _measured(table: Table, here: StageResult, metric: str, result: ParityResult) -> None:
    found = [_of(core.stages, here.stage) for core in result.cores]
    judged = [_gate(core.gates, here.stage, metric) for core in result.cores]
    failed = any(gate is not None and not gate.passed for gate in judged)
    bound = next((f"{'≥' if gate.at_least else '≤'} {number(gate.bound)}" for gate in judged if gate is not None), "")
    cells = [_cell(one, metric) for one in (here, *found)]
    table.add_row(here.stage, metric, *cells, f"FAIL {bound}" if failed else bound, style="red" if failed else "")


def _of(stages: list[StageResult], stage: str) -> StageResult:
    missing = StageResult(stage=stage, mode="chained", metrics={}, error="not run")
    return next((one for one in stages if one.stage == stage), missing)


def _gate(gates: list[GateResult], stage: str, metric: str) -> GateResult | None:
    return next((gate for gate in gates if (gate.stage, gate.metric) == (stage, metric)), None)


def _cell(stage: StageResult, metric: str) -> str:
    return number(stage.metrics[metric]) if metric in stage.metrics else stage.error or ""
