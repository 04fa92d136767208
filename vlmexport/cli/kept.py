"""The command for what is kept between runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from vlmexport.cli.options import Json, Quiet
from vlmexport.console import Console


class Action(StrEnum):
    """What to do with the cache."""

    show = "show"
    prune = "prune"


def cache(
    action: Annotated[Action, typer.Argument(help="Show what is there, or remove some of it.")] = Action.show,
    days: Annotated[
        float | None,
        typer.Option(help="Keep what was used within so many days, 90 by default.", min=0, show_default=False),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Keep so much, the last used first: 5GB by default.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all, and what `make arm64` has installed.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show or prune what is kept between runs: calibration, traced graphs, what clients need."""
    from vlmexport import cache as kept
    from vlmexport.report import cache as report

    console, allowed, folder = Console(as_json, quiet), kept.limits(days, size), kept.cache_folder()
    before = kept.entries()
    if action is Action.show:
        console.result(report.table(folder, before, allowed), {"folder": str(folder), "entries": report.facts(before)})
        return
    if everything:
        for entry in before:
            kept.remove(entry)
    else:
        kept.prune(allowed)
    left = kept.entries()
    gone = [entry for entry in before if entry.path not in {one.path for one in left}]
    document = {"folder": str(folder), "removed": report.facts(gone), "entries": report.facts(left)}
    console.result(report.pruned(folder, gone, left), document)
