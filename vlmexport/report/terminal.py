"""A parity result on the terminal."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmexport.artifact.bundle.card import of_views
from vlmexport.parity.result import Answer, ParityResult, StockResult
from vlmexport.parity.summary import views
from vlmexport.report.cores import cores, summary
from vlmexport.report.places import costs
from vlmexport.report.rows import ran_on, rows, sentence
from vlmexport.text import one_line

_DIFFERENT_SHOWN = 3


def parity(result: ParityResult) -> RenderableType:
    """Stages, gates that fail, the first answers that differ, and the verdict."""
    parts: list[RenderableType] = [cores(result) if result.cores else _stages(result)]
    for core in result.cores:
        parts += [
            Text(f"  {gate.stage} on {core.core}: {sentence(gate)}", style="red")
            for gate in core.gates
            if not gate.passed
        ]
        parts += _different(core.answers, f" on {core.core}")
    if not result.cores:
        failed = [(row, text) for row in rows(result) if row.side != "stock" for text in row.failures]
        parts += [Text(f"  {row.stage} ({row.side}): {text}", style="red") for row, text in failed]
        parts += _different(result.answers)
    parts += [Text(f"  {text}", style="dim") for text in (costs(result.bisect) if result.bisect else ())]
    parts += [Text(f"  note: {note}", style="dim") for note in result.notes]
    parts += [Text(f"  {of_views(views(result.views))}")] if result.views else []
    parts += [Text(f"  {summary(core)}", style="" if core.passed else "red") for core in result.cores]
    parts.append(verdict(result))
    if result.stock is not None:
        parts.append(stock(result.stock, result.strict_stock))
    return Group(*parts)


def _different(answers: list[Answer], where: str = "") -> list[Text]:
    """The first answers that are not the float model's."""
    different = [answer for answer in answers if not answer.equal]
    parts = []
    for answer in different[:_DIFFERENT_SHOWN]:
        margin = "" if answer.margin is None else f" (margin there {answer.margin:.3f})"
        text = f"{answer.question} → {answer.bundle!r}{where}, the float model says {answer.reference!r}{margin}"
        parts.append(Text(f"  {one_line(text)}", style="dim"))
    if len(different) > _DIFFERENT_SHOWN:
        parts.append(Text(f"  … and {len(different) - _DIFFERENT_SHOWN} more answers that differ{where}", style="dim"))
    return parts


def verdict(result: ParityResult) -> Text:
    """One line."""
    runtime = " and ".join(core.core for core in result.cores) or ran_on(result)
    where = f"{result.bundle}: {result.samples} samples, {runtime}, {result.seconds:.0f} s"
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
    baseline = ("baseline",) if result.baseline else ()
    for column in ("stage", "fed", "measured", *baseline, "gates"):
        table.add_column(column)
    for is_stock, group in groupby(rows(result), lambda row: row.side == "stock"):
        if is_stock:
            table.add_section()
        for row in group:
            style = "" if row.passed else "red" if row.counts else "yellow"
            measured = [", ".join(row.measured), *([", ".join(row.before)] if baseline else [])]
            verdict = "pass" if row.passed else "FAIL"
            table.add_row(row.stage, row.fed, *measured, verdict, style=style)
    return table
