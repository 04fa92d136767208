"""Engines, each a folder beside this file with a module ``engine``, by the name that a manifest gives a half.

A new one is a folder: ``engine.py`` says its ``NAME``, and imports the rest when it is asked to.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.errors import CheckpointError
from vlmexport.runtime.stages import Decoding, Seeing
from vlmexport.workers.process import WorkerProcess

if TYPE_CHECKING:
    from vlmexport.runtime.layers import Layers
    from vlmexport.source.checkpoint import Checkpoint


class Halves(Protocol):
    """An engine with a bundle: it opens either half, or both in one place."""

    @property
    def worker(self) -> WorkerProcess | None:
        """Where they run; None where that is this process."""

    def seeing(self) -> Seeing:
        """Vision encoder and projector."""

    def decoding(self) -> Decoding:
        """Language model and tokenizer."""

    def close(self) -> None:
        """Release what was opened, the worker too."""


class Start(Protocol):
    """Starts an engine for a bundle; ``in_worker``: in a process that holds nothing else.

    Raises:
        MissingDependency: the engine is not installed.
    """

    def __call__(self, bundle: Path, manifest: Manifest, *, in_worker: bool = False) -> Halves: ...


class Engine(Protocol):
    """The module ``engine`` of an engine's folder."""

    NAME: str

    def load(self) -> Start:
        """Import what runs bundles, which takes seconds."""

    def layers(self, bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> Layers:
        """A view into the halves that this engine runs; ``checkpoint`` is the float model."""


def find_engine(name: str) -> Engine:
    """The engine of this name.

    Raises:
        CheckpointError: there is none.
    """
    known = _engines()
    if name not in known:
        raise CheckpointError(
            f"{MANIFEST} names an engine {name!r}, known are {', '.join(known)}", "install a newer vlmexport"
        )
    return known[name]


@cache
def _engines() -> dict[str, Engine]:
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob("*/engine.py"))
    found = [cast(Engine, import_module(f"{__package__}.{folder}.engine")) for folder in folders]
    return {engine.NAME: engine for engine in found}
