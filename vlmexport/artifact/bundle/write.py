"""Write what a bundle says of itself: manifest and model card, and later what a check found."""

from __future__ import annotations

from pathlib import Path

from vlmexport import files
from vlmexport.artifact.bundle.card import card
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.bundle.staging import CARD, MANIFEST
from vlmexport.artifact.bundle.summary import ParitySummary
from vlmexport.errors import UsageError

_LOCK = ".vlmexport.lock"
_PATIENCE = 60.0
"""Seconds to wait for another check's result, which is written within one."""


def store_result(folder: Path, checked: Manifest, name: str, result: str, parity: ParitySummary) -> None:
    """Write what a check found: the file ``name``, the manifest and the card, all three by one check at a time.

    Args:
        checked: the manifest of the bundle that was checked.
        parity: what the manifest says of it.

    Raises:
        UsageError: meanwhile another bundle took its place, or another check does not end; nothing is written.
    """
    busy = UsageError(f"another check of {folder} is writing its result", "check it again")
    with files.locked(folder / _LOCK, busy, _PATIENCE):
        if read_manifest(folder).model_copy(update={"parity": None}) != checked.model_copy(update={"parity": None}):
            raise UsageError(f"{folder} was exported again while it was checked", "check it again")
        files.write(folder / name, result)
        write_manifest(folder, checked.model_copy(update={"parity": parity}))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``vlmexport.json`` and the model card; neither is ever half there."""
    document = manifest.model_dump_json(indent=2, exclude_none=True) + "\n"
    for name, text in ((CARD, card(manifest)), (MANIFEST, document)):
        files.write(folder / name, text)
