"""``vlmexport.json``: what a bundle says of itself, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from vlmexport.artifact.bundle import version_1
from vlmexport.artifact.bundle.halves import (
    GRAPHS,
    LABELS,
    LLAMA_CPP,
    ONNXRUNTIME,
    DecodingHalf,
    GraphReport,
    Role,
    SeeingHalf,
)
from vlmexport.artifact.bundle.inside import InnerPath, refuse_links
from vlmexport.artifact.bundle.models import Part
from vlmexport.artifact.bundle.source import Source
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.artifact.bundle.summary import ParitySummary
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.model.plugins import token_grid
from vlmexport.processing.prompt import Grid
from vlmexport.recipe import Recipe

_MANIFEST_BYTES = 64 << 20
_NAMES = {ONNXRUNTIME: "onnx", LLAMA_CPP: "gguf"}


class File(Part):
    """A file of the bundle: path relative to it, with forward slashes."""

    path: InnerPath
    bytes: int
    sha256: str
    role: Role | None = None

    @property
    def label(self) -> str | None:
        """What people read of the weights in it; None where it holds none."""
        return LABELS.get(self.role) if self.role else None


class Calibrated(Part):
    """What a bundle was calibrated with."""

    samples: list[str] = Field(description="Ids; a check never uses them for its verdict.")
    sha256: str = Field(description="Of the statistics.")
    images: list[str] = Field(default_factory=list, description="SHA-256 of the image files, which no check uses.")


class Manifest(Part):
    """``vlmexport.json``, version 2. ``version_1`` reads the one before."""

    schema_version: Literal[2] = 2
    source: Source
    recipe: Recipe
    tools: dict[str, str]
    calibration: Calibrated | None = None
    seeing: SeeingHalf
    decoding: DecodingHalf
    files: list[File] = Field(default_factory=list)
    tensors: dict[str, str] = Field(default_factory=dict, description="Tensor or layer → type, where not the default.")
    notes: list[str] = Field(default_factory=list)
    parity: ParitySummary | None = None

    @property
    def kind(self) -> str:
        """What people call a bundle of these engines: ``onnx``, ``gguf`` or ``hybrid``. Nothing is decided by it."""
        engine = self.seeing.engine
        return _NAMES.get(engine, engine) if engine == self.decoding.engine else "hybrid"

    @property
    def image_processor(self) -> ImageProcessorSpec:
        """How its pictures become pixels."""
        return self.source.spec.image_processor.spec()

    @property
    def token_grid(self) -> Grid:
        """Rows and columns of the visual tokens of one view."""
        return token_grid(self.source.spec.projector.spec())

    @property
    def classes(self) -> tuple[str, ...]:
        """What its answers are one of; none where it generates text."""
        return self.source.spec.language.classes

    def graphs(self) -> dict[Role, str]:
        """The ONNX graphs that are run: role → path."""
        files = self.seeing.files | self.decoding.files
        return {role: files[role] for role in GRAPHS if role in files}

    @property
    def reports(self) -> dict[Role, GraphReport]:
        """How each ONNX graph was made, those included that clients alone run."""
        return self.seeing.reports | self.decoding.reports

    def smoothed(self, graph: Role) -> set[str]:
        """Paths of a graph's layers that SmoothQuant's scales were folded into."""
        report = self.reports.get(graph)
        return set(report.smoothed or ()) if report else set()

    def size(self, roles: tuple[Role, ...]) -> int:
        """Bytes of the files that have one of these roles."""
        return sum(file.bytes for file in self.files if file.role in roles)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.source.spec.stop_token_ids

    @property
    def max_images(self) -> int | None:
        """Most images of one prompt; None where there is no limit."""
        return self.source.spec.max_images

    @property
    def image_text(self) -> ImageText | None:
        """What stands for an image in the text of a prompt; None where nothing does but its visual tokens."""
        return self.source.spec.image_text


class _Version(BaseModel):
    schema_version: int = 1


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, which may come from a stranger: no path in it and no link beside it leads elsewhere.

    Raises:
        UsageError: not a bundle.
        CheckpointError: its manifest is damaged or of an unknown version, or leads out of the bundle.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} is not a bundle (it has no {MANIFEST})", "make one with `vlmexport onnx` or `gguf`")
    refuse_links(folder)
    try:
        if path.stat().st_size > _MANIFEST_BYTES:
            raise ValueError(f"it is larger than {_MANIFEST_BYTES >> 20} MiB")
        return _read(path)
    except ValueError as error:  # pydantic's too
        reason, cure = _first(error)
        raise CheckpointError(f"{path} is damaged or of another version ({reason})", cure) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error


def _read(path: Path) -> Manifest:
    raw = path.read_bytes()
    version = _Version.model_validate_json(raw).schema_version
    if version == 1:
        return Manifest.model_validate(version_1.upgraded(raw))
    if version != 2:
        raise CheckpointError(f"{path} has schema version {version}, known are 1 and 2", "install a newer vlmexport")
    return Manifest.model_validate_json(raw)


def _first(error: ValueError) -> tuple[str, str]:
    """Of pydantic's complaints the first, with its place, and what to do about it. Our own validators refuse paths."""
    cure = "export the bundle again"
    if not isinstance(error, ValidationError):
        return str(error), cure
    found = error.errors(include_url=False, include_input=False)[0]
    where = " ".join(".".join(map(str, found["loc"])).split())
    reason = f"{where}: {found['msg']}" if where else found["msg"]
    return reason, "do not trust this bundle" if found["type"] == "value_error" else cure
