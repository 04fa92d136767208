"""What torch would take into memory of a ``.bin``, seen before torch reads it: a small file may ask for any amount."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

_PICKLE_BYTES = 64 << 20
"""Of what is no tensor's values; published checkpoints have some hundred kilobytes."""

_ALLOCATES = re.compile(rb"c(?:__builtin__|builtins)\nbytearray\n")
"""The one name of torch's safe reader that takes memory by a number: ``bytearray(10**12)``. It knows no other opcode
for a name than this (protocol 2)."""


def refuse_bomb(path: Path) -> None:
    """Refuse an archive that is not what ``torch.save`` writes: values as they are, and little else.

    Raises:
        ValueError: it is no archive, or its members inflate, overlap, or are too large.
        OSError: it cannot be read.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            if any(one.compress_type != ZIP_STORED or one.compress_size != one.file_size for one in members):
                raise ValueError("its members are compressed, which torch.save never does")
            if sum(one.file_size for one in members) > path.stat().st_size:
                raise ValueError("its members overlap")
            rest = [one for one in members if not re.search(r"(^|/)data/[^/]+$", one.filename)]
            if sum(one.file_size for one in rest) > _PICKLE_BYTES:
                raise ValueError(f"it holds more than {_PICKLE_BYTES >> 20} MiB besides tensors")
            if any(_ALLOCATES.search(archive.read(one)) for one in rest if one.filename.endswith(".pkl")):
                raise ValueError("it asks for memory by a number")
    except BadZipFile as error:
        raise ValueError(f"it is no archive of torch 1.6 or later: {error}") from error
