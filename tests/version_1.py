"""Manifests that vlmexport wrote before a bundle was two halves, of checkpoints that ``tests.checkpoints`` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vlmexport.artifact.bundle.halves import LABELS
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST

FOLDER = Path(__file__).parent / "artifact" / "version_1"


def document(kind: str) -> dict[str, Any]:
    """The manifest of an ``onnx``, ``gguf`` or ``hybrid`` bundle, as it was written."""
    found: dict[str, Any] = json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
    return found


def as_before(bundle: Path, folder: Path, kind: str) -> Path:
    """A copy of a bundle of the same checkpoint with the manifest of before. Hashes are this copy's, because other
    versions of the tools may write other bytes, and so are the names of GGUF files."""
    shutil.copytree(bundle, folder)
    now, old = read_manifest(bundle), document(kind)
    old["source"] |= {"path": now.source.path, "weights": now.source.weights}
    old["files"] = [
        {"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "component": file.label} for file in now.files
    ]
    for role in old["details"].keys() & LABELS.keys():
        old["details"][role] = (now.seeing.files | now.decoding.files)[role]
    (folder / MANIFEST).write_text(json.dumps(old), encoding="utf-8")
    return folder
