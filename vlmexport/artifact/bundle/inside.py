"""Paths that a bundle names stay inside of it: its manifest, its links and its graphs are input from a stranger."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from vlmexport.errors import CheckpointError

_LONGEST = 1024
"""Characters of a path; file systems end at about four times as many bytes."""

_CURE = "do not trust this bundle"


def _inside(name: str) -> str:
    """The same path, where it can only lie inside of the folder that it is joined to, on every system.

    Windows takes ``C:x`` and backslashes as ways out, and drops dots and spaces at the end of a part, so that ``.. ``
    is ``..`` there.
    """
    if not name or len(name) > _LONGEST:
        raise ValueError(f"a path of {len(name)} characters")
    if any(character in "\\:" or ord(character) < 32 for character in name):
        raise ValueError(f"the path {name!r} holds a backslash, a colon or a control character")
    if any(not part or part[-1] in ". " for part in name.split("/")):
        raise ValueError(f"the path {name!r} leads out of the bundle")
    return name


InnerPath = Annotated[str, AfterValidator(_inside)]
"""A path relative to a bundle, with forward slashes: a field of this type is checked before anything is opened."""


def refuse_links(bundle: Path) -> None:
    """Links of a bundle lead to files in it; in the cache of ``huggingface_hub``, to that repository's blobs.

    Raises:
        CheckpointError: one leads elsewhere.
    """
    real = bundle.resolve()
    roots = [real, *(folder.parent / "blobs" for folder in real.parents if folder.name == "snapshots")]
    for path in bundle.rglob("*"):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            raise CheckpointError(f"{path} is a link to a file outside of the bundle", _CURE)


def refuse_outside(names: Iterable[str], path: Path) -> None:
    """External data of a graph lie beside it. ONNX Runtime looks for itself; this is for our own readers.

    Raises:
        CheckpointError: the graph at ``path`` names a file elsewhere.
    """
    for name in names:
        try:
            _inside(name)
        except ValueError as error:
            raise CheckpointError(f"{path} names external data outside of the bundle ({error})", _CURE) from error
