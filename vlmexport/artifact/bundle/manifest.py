"""The bundle: a folder with its files and ``vlmexport.json``. How it gets to its place: staging.py."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from vlmexport import files
from vlmexport.artifact.bundle.card import card
from vlmexport.artifact.bundle.inside import InnerPath, refuse_links
from vlmexport.artifact.bundle.older import apart
from vlmexport.artifact.bundle.staging import MANIFEST as MANIFEST
from vlmexport.artifact.bundle.staging import staged as staged
from vlmexport.checkpoint.spec import ImageProcessorSpec, Spec
from vlmexport.errors import CheckpointError, ParityFailed, UsageError
from vlmexport.recipe import Recipe
from vlmexport.threads import cores

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics
    from vlmexport.source.checkpoint import Checkpoint

CARD = "README.md"
_MANIFEST_BYTES = 64 << 20
_LOCK = ".vlmexport.lock"
_PATIENCE = 60.0
"""Seconds to wait for another check's result, which is written within one."""

_SPEC, _IMAGE_PROCESSOR = TypeAdapter(Spec), TypeAdapter(ImageProcessorSpec)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Model):
    """A file of the bundle: path relative to it, with forward slashes."""

    path: InnerPath
    bytes: int
    sha256: str
    component: str | None = None


class Source(_Model):
    """The checkpoint that the bundle was made from."""

    name: str
    path: str
    layout: str
    spec: Annotated[dict[str, Any], AfterValidator(apart)]
    weights: dict[str, str] = Field(description="File name → BLAKE3; a tower's own folder is called vision_tower.")
    vision_tower: str | None = Field(None, description="Folder or Hub id, where the checkpoint carries no tower.")


class Calibrated(_Model):
    """What a bundle was calibrated with."""

    samples: list[str] = Field(description="Ids; a check never uses them for its verdict.")
    sha256: str = Field(description="Of the statistics.")
    images: list[str] = Field(default_factory=list, description="SHA-256 of the image files, which no check uses.")


class _Named(BaseModel):
    """The files among a manifest's details, and the value inside of a graph that its runtime reads."""

    graphs: dict[str, InnerPath] = Field(default_factory=dict)
    language: InnerPath | None = None
    mmproj: InnerPath | None = None
    tokenizer: InnerPath | None = None
    features: str | None = None


class _Details(dict[str, Any]):
    """What a stranger's manifest lacks is told by its name."""

    def __missing__(self, key: str) -> NoReturn:
        raise CheckpointError(f"{MANIFEST} lacks {key} among its details", "export the bundle again")


def _checked(details: dict[str, Any]) -> dict[str, Any]:
    _Named.model_validate(details)
    return _Details({key: _Details(value) if isinstance(value, dict) else value for key, value in details.items()})


class Manifest(_Model):
    """``vlmexport.json``."""

    schema_version: Literal[1] = 1
    kind: Literal["onnx", "gguf", "hybrid"]
    source: Source
    recipe: Recipe
    tools: dict[str, str]
    calibration: Calibrated | None = None
    files: list[File] = Field(default_factory=list)
    tensors: dict[str, str] = Field(default_factory=dict, description="Tensor or layer → type, where not the default.")
    notes: list[str] = Field(default_factory=list)
    details: Annotated[dict[str, Any], AfterValidator(_checked)] = Field(
        default_factory=_Details, description="What the bundle's own runtime needs to know."
    )
    parity: dict[str, Any] | None = None

    @property
    def image_processor(self) -> ImageProcessorSpec:
        """How its pictures become pixels."""
        return _IMAGE_PROCESSOR.validate_python(self.source.spec["image_processor"])

    @property
    def classes(self) -> tuple[str, ...]:
        """What its answers are one of; none where it generates text."""
        return tuple(self.source.spec["language"].get("classes", ()))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; EOS alone in bundles of earlier versions."""
        spec = self.source.spec
        return tuple(spec.get("stop_token_ids") or (int(spec["eos_token_id"]),))

    @property
    def max_images(self) -> int | None:
        """Most images of one prompt; one in bundles of earlier versions."""
        found: int | None = self.source.spec.get("max_images", 1)
        return found


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
        spec=asdict(checkpoint.spec),
        weights=checkpoint.fingerprints,
        vision_tower=checkpoint.tower.origin if checkpoint.tower else None,
    )


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


def list_files(folder: Path, components: dict[str, str], hashes: Mapping[str, str] | None = None) -> list[File]:
    """The files of a bundle, manifest and card aside (they change with each check), in order of their paths.

    Args:
        components: path → component.
        hashes: path → SHA-256 of files that were hashed when they were written; the others are read.
    """
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = [path for path, name in names.items() if name not in (MANIFEST, CARD, "parity.json")]
    known = hashes or {}
    with ThreadPoolExecutor(cores()) as pool:
        digests = list(pool.map(lambda path: known.get(names[path]) or sha256(path), paths))
    return [
        File(path=names[path], bytes=path.stat().st_size, sha256=digest, component=_component(names[path], components))
        for path, digest in zip(paths, digests, strict=True)
    ]


def _component(name: str, components: dict[str, str]) -> str | None:
    """External data belongs to the component of its graph."""
    return components.get(re.sub(r"\.onnx_data(_\d+)?$", ".onnx", name))


def store_result(folder: Path, checked: Manifest, name: str, result: str, parity: dict[str, Any]) -> None:
    """Write what a check found: the file ``name``, the manifest and the card, all three by one check at a time.

    Args:
        checked: the manifest of the bundle that was checked.
        parity: what the manifest says of it.

    Raises:
        UsageError: meanwhile another bundle took its place, or another check does not end; nothing is written.
    """
    busy = UsageError(f"another check of {folder} is writing its result", "check it again")
    with files.locked(folder / _LOCK, busy, _PATIENCE):
        if read_manifest(folder).model_copy(update={"parity": None}) != checked.model_copy(update={"parity": None}):
            raise UsageError(f"{folder} was exported again while it was checked", "check it again")
        files.write(folder / name, result)
        write_manifest(folder, checked.model_copy(update={"parity": parity}))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``vlmexport.json`` and the model card; neither is ever half there."""
    for name, text in ((CARD, card(manifest)), (MANIFEST, manifest.model_dump_json(indent=2) + "\n")):
        files.write(folder / name, text)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, which may come from a stranger: no path in it and no link beside it leads elsewhere.

    Raises:
        UsageError: not a bundle.
        CheckpointError: its manifest is damaged, or leads out of the bundle.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} is not a bundle (it has no {MANIFEST})", "make one with `vlmexport onnx` or `gguf`")
    refuse_links(folder)
    try:
        if path.stat().st_size > _MANIFEST_BYTES:
            raise ValueError(f"it is larger than {_MANIFEST_BYTES >> 20} MiB")
        manifest = Manifest.model_validate_json(path.read_bytes())
        _refuse_unknown(manifest.source.spec, asdict(_SPEC.validate_python(manifest.source.spec)))
    except ValueError as error:  # pydantic's too
        reason, cure = _first(error)
        raise CheckpointError(f"{path} is damaged or of another version ({reason})", cure) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    return manifest


def _refuse_unknown(given: dict[str, Any], known: dict[str, Any]) -> None:
    """What was written for a Spec that has more than ours would be left out in silence."""
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"source.spec has {key!r}, which is unknown")
        if isinstance(value, dict) and isinstance(known[key], dict):
            _refuse_unknown(value, known[key])


def _first(error: ValueError) -> tuple[str, str]:
    """Of pydantic's complaints the first, with its place, and what to do about it. Our own validators refuse paths."""
    cure = "export the bundle again"
    if not isinstance(error, ValidationError):
        return str(error), cure
    found = error.errors(include_url=False, include_input=False)[0]
    where = " ".join(".".join(map(str, found["loc"])).split())
    reason = f"{where}: {found['msg']}" if where else found["msg"]
    return reason, "do not trust this bundle" if found["type"] == "value_error" else cure


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
