"""A plan on the terminal: one recipe in parts, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmexport.costs import Costs
from vlmexport.plan import Plan
from vlmexport.report.costs import times


def table(found: Sequence[Costs]) -> RenderableType:
    """For people."""
    first = found[0]
    if len(found) > 1:
        return _side_by_side(first.name, [costs.plan for costs in found])
    parts = _parts(first.name, first.plan)
    return Group(parts, times(first)) if first.times else parts


def _parts(name: str, plan: Plan) -> Table:
    found = _table(f"{name}, {plan.recipe}: nothing is read or written yet", ("part", "MB", "bits a weight"))
    for part in plan.parts:
        found.add_row(part.name, _megabytes(part.bytes), f"{part.bits:.2f}" if part.weights else "")
    found.add_row("all", _megabytes(plan.bytes), "", style="bold")
    calibrates = f"calibrates {' and '.join(plan.calibrates)}" if plan.calibrates else "needs no calibration"
    found.caption = Text(_refusal(plan) or f"{calibrates}; peak memory about {plan.peak / 1e9:.1f} GB")
    found.caption_justify = "left"
    return found


def _side_by_side(name: str, plans: Sequence[Plan]) -> Table:
    """What cannot be stands below, each reason once."""
    found = _table(name, ("recipe", "MB", "bits a weight", "peak GB", "calibrates"))
    refused: dict[str, list[str]] = {}
    for plan in plans:
        if plan.refused:
            refused.setdefault(_refusal(plan), []).append(plan.recipe)
            continue
        weights = sum(part.weights for part in plan.parts)
        bits = f"{8 * plan.bytes / weights:.2f}"
        found.add_row(
            plan.recipe, _megabytes(plan.bytes), bits, f"{plan.peak / 1e9:.1f}", ", ".join(plan.calibrates) or "nothing"
        )
    found.caption = Text("\n".join(f"not {', '.join(names)}: {reason}" for reason, names in refused.items()))
    found.caption_justify = "left"
    return found


def _refusal(plan: Plan) -> str:
    """Why it cannot be, and what can; empty where it can."""
    return ": ".join(text for text in (plan.refused, plan.cure) if text)


def _table(title: str, columns: Sequence[str]) -> Table:
    found = Table(title=title, title_justify="left")
    for column in columns:
        found.add_column(column, justify="right" if column in ("MB", "bits a weight", "peak GB") else "left")
    return found


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
