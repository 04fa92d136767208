"""What the cache holds, kind by kind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from vlmexport.cache import Entry, Limits

_DAY = 86_400


def table(folder: Path, held: Sequence[Entry], allowed: Limits) -> Table:
    """Kinds with their number, bytes, and the days since one was last used."""
    shown = Table(title=str(folder), title_justify="left")
    shown.add_column("what")
    for column in ("number", "size", "last used"):
        shown.add_column(column, justify="right")
    for kind, group in _by_kind(held).items():
        days = int((time.time() - max(entry.used for entry in group)) // _DAY)
        ago = "today" if days < 1 else f"{days} days ago"
        shown.add_row(kind, f"{len(group)}", decimal(sum(entry.bytes for entry in group)), ago)
    shown.caption = (
        f"{decimal(sum(entry.bytes for entry in held))} in all; what was not used for {allowed.days:g} days leaves, "
        f"and what goes beyond {decimal(allowed.bytes)}"
    )
    shown.caption_justify = "left"
    return shown


def pruned(folder: Path, gone: Sequence[Entry], left: Sequence[Entry]) -> str:
    """One line."""
    size, rest = (decimal(sum(entry.bytes for entry in group)) for group in (gone, left))
    return f"{len(gone)} removed ({size}), {len(left)} left ({rest}) in {folder}"


def facts(held: Sequence[Entry]) -> list[dict[str, Any]]:
    """In plain data, least recently used first."""
    return [
        {"path": str(entry.path), "kind": entry.kind, "bytes": entry.bytes, "used": int(entry.used)} for entry in held
    ]


def _by_kind(held: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in held:
        found.setdefault(entry.kind, []).append(entry)
    return dict(sorted(found.items()))
