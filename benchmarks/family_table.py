"""The page docs/families.md and the figures of ``families.py``: the tables, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexport import families

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "families.json", ROOT / "docs" / "families.md"
START, END = "<!-- families: benchmarks/families.py -->", "<!-- end of families -->"

Cell = dict[str, Any]
Row = dict[str, Any]


class Notes:
    """Reasons by number, each once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def cell(self, one: Cell | None) -> str:
        """A cell of a format or a client."""
        if one is None:
            return "–"
        if one["status"] == "works":
            return f"{one['kld']:.1e}" if "kld" in one else "equal"
        if one["status"] == "gate fails":
            return f"{one['kld']:.1e} {self._number('a gate fails: ' + ', '.join(one['failed']))}"
        return f"{one['status']} {self._number(one['reason'])}"

    def _number(self, reason: str) -> str:
        if reason not in self.lines:
            self.lines.append(reason)
        return f"({self.lines.index(reason) + 1})"


def tables(found: dict[str, list[Row]]) -> str:
    """Markdown of the JSON file: formats and clients with their reasons, figures beside transformers, pixels of
    clients that resize, refusals."""
    rows, notes = found["rows"], Notes()
    columns = [
        (kind, name) for kind in ("formats", "clients") for name in dict.fromkeys(n for row in rows for n in row[kind])
    ]
    parts = [_table(
        ["layout", "file", *(name for _, name in columns)],
        [[row["layout"], f"`{row['family']}.py`", *(notes.cell(row[kind].get(name)) for kind, name in columns)]
         for row in rows],
    )]  # fmt: skip
    if notes.lines:
        parts.append("\n".join(f"{i}. {reason}" for i, reason in enumerate(notes.lines, 1)))
    compared = [row for row in rows if row["transformers"]]
    stages = list(dict.fromkeys(stage for row in compared for stage in row["transformers"]))
    parts.append(_table(
        ["beside transformers", *stages],
        [[row["layout"], *(_figure(row["transformers"][stage]) for stage in stages)] for row in compared],
    ))  # fmt: skip
    clients = list(dict.fromkeys(name for row in found["pixels"] for name in row["clients"]))
    parts.append(_table(
        ["pixels that a client resizes", "side", *clients],
        [[row["layout"], str(row["side"]), *(_levels(row["clients"][name]) for name in clients)]
         for row in found["pixels"]],
    ))  # fmt: skip
    parts.append(_table(
        ["layout", "with", "the tool's line"],
        [[row["layout"], row["change"], row["reason"]] for row in found["refused"]],
    ))  # fmt: skip
    return "\n\n".join(parts)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _levels(apart: dict[str, float]) -> str:
    """Mean and largest; what rounding of floats alone makes is 0."""
    return "0" if apart["largest"] < 0.01 else f"{apart['mean']:.2f}, {apart['largest']:.0f}"


def _figure(value: float | bool) -> str:
    return ("equal" if value else "**other**") if isinstance(value, bool) else f"{value:.1e}"


def page(text: str, found: dict[str, list[Row]]) -> str:
    """The page with the tables of the JSON file between its markers."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{tables(found)}\n\n{END}{rest.split(END)[1]}"


def complaint(text: str, found: dict[str, list[Row]]) -> str | None:
    """What is wrong with the page, or with the JSON file."""
    missing = set(families.names()) - {row["family"] for row in found["rows"]}
    if missing:
        return f"families without a row: {', '.join(sorted(missing))}; add a layout to benchmarks/family_layouts.py"
    return None if page(text, found) == text else "docs/families.md is not what benchmarks/results/families.json says"
