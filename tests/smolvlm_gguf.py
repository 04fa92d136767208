"""Tiny checkpoints of SmolVLM as GGUF bundles of one type."""

from __future__ import annotations

from pathlib import Path

from tests.gguf_bundles import export
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.source.checkpoint import open_checkpoint


def written(folder: Path, kind: str = "f32") -> Path:
    """A bundle of one type beside its checkpoint, once."""
    target = folder.with_name(f"{folder.name}-{kind}")
    if not target.exists():
        export(open_checkpoint(folder), target, type=kind, mmproj_type=kind)
    return target


def opened(bundle: Path) -> Joined:
    return join(LlamaCppHalves(bundle, read_manifest(bundle), threads=1))
