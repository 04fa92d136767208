"""What a bundle is made of, as its manifest tells it: files with their hashes, the source, versions of tools."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.manifest import Calibrated, File, Manifest
from vlmexport.artifact.bundle.source import Model, Source
from vlmexport.artifact.bundle.staging import CARD, MANIFEST
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import ParityFailed
from vlmexport.threads import cores

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics
    from vlmexport.source.checkpoint import Checkpoint

_WRITTEN_BY_CHECKS = (MANIFEST, CARD, "parity.json")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_of(checkpoint: Checkpoint) -> Source:
    """Where a bundle comes from, with the hashes of its weights."""
    return Source(
        name=checkpoint.spec.name,
        path=checkpoint.origin,
        layout=checkpoint.spec.layout,
        spec=Model.of(checkpoint.spec),
        configuration=configuration_of(checkpoint.spec),
        weights=checkpoint.fingerprints,
        vision_tower=checkpoint.tower.origin if checkpoint.tower else None,
    )


def configuration_of(spec: Spec) -> dict[str, Any]:
    """What tells two models apart, in plain data: what a model is called, and how its weights were stored, does not."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return {name: value for name, value in facts.items() if name not in ("name", "torch_dtype")}


def calibration_of(statistics: Statistics | None) -> Calibrated | None:
    """What a bundle was calibrated with."""
    if statistics is None:
        return None
    from vlmexport.calibrate.samples import calibration_hashes

    hashes = calibration_hashes(statistics.samples)
    return Calibrated(samples=list(statistics.samples), sha256=statistics.sha256(), images=hashes)


def tool_versions(*packages: str) -> dict[str, str]:
    """Versions of vlmexport and of the packages that a bundle's bytes depend on."""
    found = {}
    for name in ("vlmexport", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def list_files(folder: Path, roles: Mapping[str, Role], hashes: Mapping[str, str] | None = None) -> list[File]:
    """The files of a bundle, manifest and card aside (they change with each check), in order of their paths.

    Args:
        roles: path → role.
        hashes: path → SHA-256 of files that were hashed when they were written; the others are read.
    """
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = [path for path, name in names.items() if name not in _WRITTEN_BY_CHECKS]
    known = hashes or {}
    with ThreadPoolExecutor(cores()) as pool:
        digests = list(pool.map(lambda path: known.get(names[path]) or sha256(path), paths))
    return [
        File(path=names[path], bytes=path.stat().st_size, sha256=digest, role=_role(names[path], roles))
        for path, digest in zip(paths, digests, strict=True)
    ]


def _role(name: str, roles: Mapping[str, Role]) -> Role | None:
    """External data have the role of their graph."""
    return roles.get(re.sub(r"\.onnx_data(_\d+)?$", ".onnx", name))


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its recorded size and hash.

    Raises:
        ParityFailed: a file is missing or changed.
    """
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            raise ParityFailed(f"{path} is missing from the bundle", "export the bundle again")
        if path.stat().st_size != file.bytes or sha256(path) != file.sha256:
            raise ParityFailed(
                f"{path} is not the file that was exported", "it was changed or damaged: export it again"
            )
