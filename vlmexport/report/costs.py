"""What designs would cost on phones: on the terminal, side by side, and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from vlmexport.costs import Costs
from vlmexport.costs.phones import Range
from vlmexport.report.scatter import Panel, Point, svg
from vlmexport.source.checkpoint import COMPONENTS

_MEGA, _GIGA = 1e-6, 1e-9
_NO_TOKEN = "answers at once"


def times(costs: Costs) -> Table:
    """One design on every phone it was estimated for."""
    counted, parameters = costs.operations, costs.parameters
    shown = _table(
        f"{costs.design}: {counted.visual_tokens} visual tokens{_views(costs)}, a prompt of {counted.positions}"
    )
    for column in ("estimated on", "image", "prompt", "token"):
        shown.add_column(column)
    for time in costs.times:
        shown.add_row(time.phone.name, str(time.image), str(time.prompt), str(time.token or _NO_TOKEN))
    sizes = ", ".join(f"{name} {parameters[name] * _MEGA:,.1f}" for name in COMPONENTS)
    shown.caption = (
        f"million parameters: {sizes}; billion operations: image {_giga(counted.vision + counted.projector)}, "
        f"prompt {_giga(counted.prompt)}, token {_giga(counted.token)}; no phone was measured (docs/designs.md)"
    )
    return shown


def compare(found: Sequence[Costs]) -> Table:
    """A column for each design; times on the first phone alone."""
    phone = next((costs.times[0].phone.name for costs in found if costs.times), "no phone")
    shown = _table(f"{found[0].plan.recipe}, times estimated on {phone}")
    shown.add_column("")
    for costs in found:
        shown.add_column(f"{costs.name}\n{costs.design}", justify="right")
    for name, cell in _ROWS.items():
        shown.add_row(name, *(cell(costs) for costs in found))
    if refused := [f"{costs.name}: {costs.plan.refused}" for costs in found if costs.plan.refused]:
        shown.caption = "\n".join(refused)
    return shown


def plot(found: Sequence[Costs]) -> str:
    """SVG: size of the bundle against the time of an image, and of a token where there are any, in the middle of their
    ranges.

    Args:
        found: at least one that its recipe does not refuse.
    """
    shown = [costs for costs in found if costs.times]
    phone = shown[0].times[0].phone.key

    def panel(name: str, unit: str, value: Callable[[Costs], Range | None], factor: float) -> Panel:
        points = [
            Point(costs.name, costs.plan.bytes * _MEGA, _middle(time) * factor)
            for costs in shown
            if (time := value(costs))
        ]
        return Panel(f"{name} on {phone}, estimated", "MB", unit, points)

    panels = [
        panel("image and prompt", "s", lambda costs: costs.times[0].first_token, 1.0),
        panel("a token", "ms", lambda costs: costs.times[0].token, 1000.0),
    ]
    return svg([panel for panel in panels if panel.points])


def _views(costs: Costs) -> str:
    views = costs.operations.views
    return f" in {views} views" if views > 1 else ""


def _middle(time: Range) -> float:
    return (time.low + time.high) / 2


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left")


def _giga(operations: int) -> str:
    return f"{operations * _GIGA:.3g}"


def _parameters(name: str) -> Callable[[Costs], str]:
    return lambda costs: f"{costs.parameters[name] * _MEGA:,.1f}"


def _operations(name: str) -> Callable[[Costs], str]:
    return lambda costs: _giga(getattr(costs.operations, name))


def _time(name: str) -> Callable[[Costs], str]:
    return lambda costs: str(getattr(costs.times[0], name) or _NO_TOKEN) if costs.times else "refused"


_ROWS: dict[str, Callable[[Costs], str]] = {
    "vision, M parameters": _parameters("vision"),
    "projector, M parameters": _parameters("projector"),
    "language, M parameters": _parameters("language"),
    "visual tokens": lambda costs: f"{costs.operations.visual_tokens}{_views(costs)}",
    "vision, G operations": _operations("vision"),
    "projector, G operations": _operations("projector"),
    "prompt, G operations": _operations("prompt"),
    "token, G operations": _operations("token"),
    "bundle, MB": lambda costs: f"{costs.plan.bytes * _MEGA:,.1f}" if costs.times else "refused",
    "image": _time("image"),
    "prompt": _time("prompt"),
    "image to first token": _time("first_token"),
    "token": _time("token"),
}
