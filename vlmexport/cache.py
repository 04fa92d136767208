"""What is expensive to make anew is kept between runs: where it lies, how it gets there, and when it leaves.

Nothing depends on the cache: where it cannot be written, work goes on without it, and a warning of Python's ``logging``
says so once. What has not been used for long, and what goes beyond a size, leaves when something new is kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path

from platformdirs import user_cache_path

from vlmexport.errors import UsageError
from vlmexport.files import whole
from vlmexport.units import parse_size

DAYS, SIZE = 90, "5GB"
"""Limits where ``VLMEXPORT_CACHE_DAYS`` and ``VLMEXPORT_CACHE_SIZE`` say nothing."""

KINDS = {
    "statistics-*": "calibration statistics",
    "sensitivity-*": "sensitivities of layers",
    "traces/*": "traced graphs",
    "libmtmd-*": "probes of libmtmd",
    "transformers.js-*": "transformers.js",
    "arm64-onnxruntime-*": "onnxruntime for arm64",
    ".*.partial": "unfinished",
    "traces/.*.partial": "unfinished",
}
"""Pattern of names → what that is. Nothing else in the folder is ours."""

_INSTALLED, _UNFINISHED = "onnxruntime for arm64", "unfinished"
_DAY, _IN_USE = 86_400.0, 3_600.0
_log = logging.getLogger("vlmexport")
_said: set[Path] = set()


def cache_folder() -> Path:
    """``VLMEXPORT_CACHE``, else ``vlmexport`` where the system has its caches; it need not exist yet."""
    given = os.environ.get("VLMEXPORT_CACHE")
    if given:
        return Path(given)
    found = user_cache_path("vlmexport", appauthor=False)
    return found if found.is_absolute() else Path(os.devnull) / "vlmexport"  # a user without a home has none


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Write a file of the cache, which other processes see whole or not at all; whether it is there now.

    Args:
        write: told of the path to write to, under a name of its own.

    Raises:
        UsageError: a limit is none.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            write(temporary)
    except UsageError:  # Windows, where another process reads what is there
        return is_held(path)
    except OSError as error:
        goes_on_without(error)
        return False
    prune(limits(), in_use=_IN_USE)
    return True


def goes_on_without(error: OSError) -> None:
    """Say once a folder, and not in every process of a command, that it cannot be written."""
    folder = cache_folder()
    if folder not in _said and parent_process() is None:
        _said.add(folder)
        reason = error.strerror or str(error)
        _log.warning("the cache %s cannot be written (%s): nothing is kept for the next run", folder, reason)


def is_held(path: Path) -> bool:
    """Whether an entry is there, and in a folder that this user may look into."""
    try:
        return path.exists()
    except OSError:
        return False


def used(path: Path) -> None:
    """Note that an entry was of use now."""
    with suppress(OSError):
        os.utime(path)


@dataclass(frozen=True)
class Limits:
    """Days without use after which an entry leaves, and bytes of all together."""

    days: float
    bytes: int


def limits(days: float | None = None, size: str | None = None) -> Limits:
    """Those given, else the environment's, else ours.

    Raises:
        UsageError: one is none.
    """
    wanted = size or os.environ.get("VLMEXPORT_CACHE_SIZE") or SIZE
    given = os.environ.get("VLMEXPORT_CACHE_DAYS") or str(DAYS)
    try:
        allowed = parse_size(wanted)
    except ValueError as error:
        raise UsageError(f"the cache's size: {error}", "pass --size 5GB, or set VLMEXPORT_CACHE_SIZE so") from error
    if days is None:
        if not given.isdecimal():
            raise UsageError(f"VLMEXPORT_CACHE_DAYS is {given!r}, no number of days", "set it like 90")
        days = int(given)
    return Limits(days, allowed)


@dataclass(frozen=True)
class Entry:
    """A file or folder of the cache; ``used`` in seconds since 1970."""

    path: Path
    kind: str
    bytes: int
    used: float


def entries(installed: bool = True) -> list[Entry]:
    """What is there, least recently used first.

    Args:
        installed: with what a command of its own has installed, and never leaves by itself.
    """
    found = (
        _entry(path, kind)
        for pattern, kind in KINDS.items()
        if installed or kind != _INSTALLED
        for path in _matching(pattern)
    )
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.used, entry.path))


def prune(allowed: Limits, in_use: float = 0.0) -> list[Entry]:
    """Remove what has not been used for too long, then the least recently used until the rest is small enough.

    Args:
        in_use: seconds without use in which nothing is removed.
    """
    now, left = time.time(), entries(installed=False)
    total, gone = sum(entry.bytes for entry in left), []
    for entry in left:
        age = now - entry.used
        too_old = age > (min(1, allowed.days) if entry.kind == _UNFINISHED else allowed.days) * _DAY
        if (too_old or total > allowed.bytes) and age >= in_use:
            remove(entry)
            total -= entry.bytes
            gone.append(entry)
    return gone


def remove(entry: Entry) -> None:
    """Remove an entry; another process may have been faster."""
    with suppress(OSError):
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


def _matching(pattern: str) -> Iterator[Path]:
    with suppress(OSError):
        for path in cache_folder().glob(pattern):
            if path.name.startswith(".") == pattern.rpartition("/")[2].startswith("."):
                yield path


def _entry(path: Path, kind: str) -> Entry | None:
    try:
        status = path.stat()
        parts = path.rglob("*") if path.is_dir() else [path]
        size = sum(part.lstat().st_size for part in parts if not part.is_dir())
    except OSError:  # gone meanwhile
        return None
    return Entry(path, kind, size, status.st_mtime)
