"""Files that are not what their name says: a clone without Git LFS leaves pointers, a wrong link downloads a page."""

from __future__ import annotations

from pathlib import Path

from vlmexport.errors import CheckpointError

_READ = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html")


def substitute(path: Path) -> tuple[str, str] | None:
    """What a file is instead, and how to get the file itself; None where it may be what its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(_READ).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    except OSError:
        return None
    if start.startswith(_POINTER):
        return "is a Git LFS pointer, not the file itself", "run `git lfs pull` in its repository, or download the file"
    if start.startswith(_PAGES):
        return "is a web page, not the file itself", "download the file by its download link"
    return None


def refuse_substitute(path: Path) -> None:
    """Raise where a file is a pointer or a page.

    Raises:
        CheckpointError: it is; the message says how to get the file.
    """
    found = substitute(path)
    if found is not None:
        raise CheckpointError(f"{path} {found[0]}", found[1])
