"""What an export made: files, components, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from vlmexport.artifact.bundle.manifest import Manifest


def facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The bundle in plain data."""
    return {
        "bundle": str(folder),
        "kind": manifest.kind,
        "recipe": manifest.recipe.name,
        "bytes": sum(file.bytes for file in manifest.files),
        "files": [file.model_dump() | {"component": file.label} for file in manifest.files],
        "notes": manifest.notes,
    }


def table(shown: dict[str, Any]) -> Table:
    """For people: the files that hold components."""
    found = Table(title=f"{shown['bundle']} ({shown['recipe']})", title_justify="left")
    for column in ("file", "component", "MB"):
        found.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for file in shown["files"]:
        if file["component"]:
            found.add_row(file["path"], file["component"], f"{file['bytes'] / 1e6:,.2f}")
    found.caption = f"{shown['bytes'] / 1e6:,.2f} MB in all"
    found.caption_justify = "left"
    return found
