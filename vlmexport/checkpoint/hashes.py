"""Hashes of files by BLAKE3: ten times as fast as SHA-256, which matters for 14 GB of weights."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

_READ = 1 << 22


def hash_file(path: Path) -> str:
    """Hex digest of a file; memory does not grow with it."""
    digest = blake3(max_threads=blake3.AUTO)
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_READ)
        while size := file.readinto(buffer):
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()
