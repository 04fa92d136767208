"""Folders inside of the Hugging Face Hub's cache: ``models--OWNER--NAME/snapshots/COMMIT``."""

from __future__ import annotations

from pathlib import Path

_PREFIX = "models--"


def repository(folder: Path) -> str | None:
    """``owner/name`` of a snapshot's folder; None of any other."""
    for path in (folder.absolute(), folder.resolve()):
        snapshots, root = path.parent, path.parent.parent.name
        if snapshots.name == "snapshots" and root.startswith(_PREFIX):
            return root.removeprefix(_PREFIX).replace("--", "/")
    return None
