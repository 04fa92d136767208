"""Files that others use at the same time, here or on another machine: whole or not there, one writer at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from vlmexport.errors import UsageError

PACKAGE = Path(__file__).parent
"""Of this package, with its own modules."""

_PATIENCE = 5.0
"""Seconds in which another program lets go of a file on Windows: a virus scanner, a reader."""


def beside(path: Path) -> Path:
    """A name in the same folder that nobody else takes: process ids are not unique where machines share a home."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes the path's place when the block ends without an error; else it is removed.

    Raises:
        UsageError: as ``replace``.
    """
    temporary = beside(path)
    try:
        yield temporary
        replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text, whole; errors as ``whole``."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace(source: Path, target: Path) -> None:
    """``os.replace``. Windows refuses it while another program has the target, or a file in it, open or mapped.

    Raises:
        UsageError: it still has, after some seconds.
    """
    end = time.monotonic() + (_PATIENCE if sys.platform == "win32" else 0)
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if time.monotonic() >= end:
                raise UsageError(
                    f"{source} cannot become {target} ({error.strerror})",
                    "end what uses either of them (`vlmexport serve`, say), or check the folder's permissions",
                ) from error
            time.sleep(0.1)


@contextmanager
def locked(path: Path, busy: UsageError, wait: float = 0) -> Iterator[None]:
    """Alone, on this machine and on others that share the folder; the system lets go when a process ends, however.

    Args:
        path: the lock's file, which is made and removed.
        busy: what to raise where another process has it for longer than ``wait`` seconds.

    A file system that knows no locks is written to without.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=wait)
    except (Timeout, FileNotFoundError) as error:  # another one has it, or has just removed it
        raise busy from error
    except PermissionError:
        raise
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove open files; there the release does it
            path.unlink()
        lock.release()
