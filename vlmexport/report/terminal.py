"""A parity result on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmexport.artifact.card import number
from vlmexport.parity.result import GateResult, ParityResult, StageResult, StockResult

_SHOWN = {
    "pixels": ("max_abs", "cosine"),
    "features": ("cosine", "cosine_p1", "sqnr_db"),
    "tokens": ("cosine", "cosine_p1", "sqnr_db"),
    "logits": ("kld", "top1", "max_abs"),
    "answer": ("equal", "accuracy", "task_drop"),
}
_DIFFERENT_SHOWN = 3


def parity(result: ParityResult) -> RenderableType:
    """Stages, gates that fail, the first answers that differ, and the verdict."""
    parts: list[RenderableType] = [_stages(result)]
    failed = [gate for gate in result.gates if not gate.passed]
    parts += [Text(f"  {_gate(gate)}", style="red") for gate in failed]
    different = [answer for answer in result.answers if not answer.equal]
    for answer in different[:_DIFFERENT_SHOWN]:
        margin = "" if answer.margin is None else f" (margin there {answer.margin:.3f})"
        text = f"  {answer.question} → {answer.bundle!r}, the float model says {answer.reference!r}{margin}"
        parts.append(Text(text, style="dim"))
    if len(different) > _DIFFERENT_SHOWN:
        parts.append(Text(f"  … and {len(different) - _DIFFERENT_SHOWN} more answers that differ", style="dim"))
    parts += [Text(f"  note: {note}", style="dim") for note in result.notes]
    parts.append(verdict(result))
    if result.stock is not None:
        parts.append(stock(result.stock, result.strict_stock))
    return Group(*parts)


def verdict(result: ParityResult) -> Text:
    """One line."""
    where = f"{result.bundle}: {result.samples} samples, {result.runtime}, {result.seconds:.0f} s"
    if result.passed:
        return Text(f"PASS  {where}", style="bold green")
    return Text(f"FAIL at {result.broken_stage}  {where}", style="bold red")


def stock(found: StockResult, strict: bool) -> Text:
    """One line: what users of an unrepaired library get."""
    said = "passes" if found.passed else f"FAILS at {found.broken_stage}"
    text = f"As stock llama.cpp computes it, this bundle {said} ({found.samples} samples)"
    if strict or found.passed:
        return Text(text, style="green" if found.passed else "bold red")
    return Text(f"{text}; see docs/llama-cpp.md, and --strict-stock to gate on it", style="yellow")


def _stages(result: ParityResult) -> Table:
    table = Table(title=f"{result.bundle} against {result.reference}", title_justify="left")
    table.add_column("stage")
    table.add_column("fed")
    table.add_column("measured")
    table.add_column("gates")
    for stage in result.stages:
        _row(table, stage, result.gates, "reference" if stage.mode == "local" else "itself", "red")
    if result.stock is not None:
        table.add_section()
        for stage in result.stock.stages:
            _row(table, stage, result.stock.gates, "itself, stock", "red" if result.strict_stock else "yellow")
    return table


def _row(table: Table, stage: StageResult, gates: list[GateResult], fed: str, alarm: str) -> None:
    ok = all(gate.passed for gate in gates if gate.stage == stage.stage and gate.mode == stage.mode)
    shown = [f"{name} {number(stage.metrics[name])}" for name in _SHOWN[stage.stage] if name in stage.metrics]
    measured = stage.error or ", ".join(shown)
    table.add_row(stage.stage, fed, Text(measured), "pass" if ok else "FAIL", style="" if ok else alarm)


def _gate(gate: GateResult) -> str:
    sign = "≥" if gate.at_least else "≤"
    value = "not measured" if gate.value is None else number(gate.value)
    return f"{gate.stage} ({gate.mode}): {gate.metric} is {value}, the gate is {sign} {number(gate.bound)}"
