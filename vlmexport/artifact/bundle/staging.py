"""Whole or not at all: a bundle is written beside its destination, and takes its place when it is complete.

Everything temporary lies in one folder, ``.<name>.partial`` beside the destination: a mark that says it is ours and is
locked while we run, the new bundle, scratch space, and for a moment the old one. A run that was killed leaves it; the
next run to the same destination brings the old bundle back if it had been moved already, and removes the rest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlmexport.errors import UsageError
from vlmexport.files import locked, replace

MANIFEST = "vlmexport.json"
CARD = "README.md"
_MARK = ".vlmexport"
_NEW, _OLD, _SCRATCH = "new", "old", "scratch"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MANIFEST_BYTES = 1 << 20
_ROOM = "free some space, or pass another --output"


@contextmanager
def staged(destination: Path, force: bool, needed: int = 0, mark: str = MANIFEST) -> Iterator[Path]:
    """A temporary folder that takes the destination's place when the block ends without an error.

    Args:
        force: replace a bundle that is there.
        needed: bytes that will be written; it is an error if they are not free.
        mark: the file that tells a folder of ours from others.

    Raises:
        UsageError: the destination exists and ``force`` is not set, another export to it is running, the disk is
            full, beforehand or on the way, or a program uses the old bundle and the system does not let it be moved.
    """
    with _locked(destination) as root:
        _refuse(destination, force, mark)
        _refuse_full_disk(destination, needed)
        new = root / _NEW
        new.mkdir()
        (root / _SCRATCH).mkdir()
        try:
            yield new
        except OSError as error:
            if error.errno in _FULL:
                raise UsageError(f"no space left for {destination} ({error.strerror})", _ROOM) from error
            raise
        if destination.exists():
            replace(destination, root / _OLD)
        replace(new, destination)


def scratch(destination: Path) -> Path:
    """The folder for what is needed only while a bundle is made. It is there within ``staged``, goes when the bundle is
    complete, and what a killed run left in it goes with the rest."""
    return _root(destination) / _SCRATCH


def refuse_destination(destination: Path, force: bool, mark: str = MANIFEST) -> None:
    """Say at once that a bundle cannot be written there, before anything long begins; what a killed run left is
    cleared.

    Raises:
        UsageError: as ``staged``.
    """
    if _root(destination).exists():
        with _locked(destination):
            pass
    _refuse(destination, force, mark)


def _refuse(destination: Path, force: bool, mark: str = MANIFEST) -> None:
    if not destination.exists():
        return
    if not force:
        raise UsageError(f"{destination} exists already", "pass --force to replace it, or another --output")
    if not destination.is_dir():
        raise UsageError(f"{destination} is a file", "pass another --output; it was left alone")
    if not (destination / mark).is_file() and any(destination.iterdir()):
        raise UsageError(
            f"{destination} is not vlmexport's (no {mark} in it) and not empty",
            "pass another --output; it was left alone",
        )


def _refuse_full_disk(destination: Path, needed: int) -> None:
    """The old bundle is there until the new one is whole, so its bytes do not count as free."""
    needed += _MANIFEST_BYTES
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise UsageError(f"{destination} needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free there", _ROOM)


def _root(destination: Path) -> Path:
    whole = Path(os.path.abspath(destination))  # `--output .` has no name
    return whole.with_name(f".{whole.name}.partial")


@contextmanager
def _locked(destination: Path) -> Iterator[Path]:
    """Our temporary folder, empty but for its mark; removed afterwards, with all that is in it."""
    root = _root(destination)
    root.mkdir(parents=True, exist_ok=True)
    if not (root / _MARK).exists() and any(root.iterdir()):
        raise UsageError(f"{root} is in the way, and not vlmexport's", "move it, or pass another --output")
    try:
        with locked(root / _MARK, UsageError(f"another export to {destination} is running", "wait for it")):
            try:
                _clear(root, destination)
                yield root
            finally:
                _clear(root, destination)
    finally:
        with suppress(OSError):  # another export is in it
            root.rmdir()


def _clear(root: Path, destination: Path) -> None:
    """Between the two renames of a swap there is no bundle at the destination: then the old one goes back."""
    if (root / _OLD).exists() and not destination.exists():
        replace(root / _OLD, destination)
    for name in (_NEW, _OLD, _SCRATCH):
        shutil.rmtree(root / name, ignore_errors=True)
