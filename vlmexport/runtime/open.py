"""The runtime of a bundle: its halves, each on the engine that the manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.runtime.engines import find_engine
from vlmexport.runtime.joined import join
from vlmexport.runtime.stages import Runtime

if TYPE_CHECKING:
    from vlmexport.runtime.layers import Layers
    from vlmexport.source.checkpoint import Checkpoint

Machine = Literal["arm64"]
"""Another machine, whose kernels a bundle can be run on here."""


def open_runtime(bundle: Path, manifest: Manifest | None = None) -> Runtime:
    """Open a bundle with the engines its manifest names; halves of one engine share it.

    Raises:
        UsageError: not a bundle.
        CheckpointError: an engine is unknown.
        MissingDependency: an engine is not installed.
    """
    manifest = manifest or read_manifest(bundle)
    with ExitStack() as opened:
        names = dict.fromkeys((manifest.decoding.engine, manifest.seeing.engine))
        starts = {name: find_engine(name).load() for name in names}
        started = {name: opened.enter_context(closing(start(bundle, manifest))) for name, start in starts.items()}
        runtime = join(started[manifest.seeing.engine], started[manifest.decoding.engine])
        opened.pop_all()
        return runtime


def open_cores(bundle: Path, manifest: Manifest, machine: Machine | None) -> Mapping[str, Runtime]:
    """The bundle on each core of another machine, by its name; none where there is no other machine.

    Raises:
        UsageError: no ONNX bundle.
        MissingDependency: that machine is not set up.
    """
    if machine is None:
        return {}
    from vlmexport.runtime.ort.arm64 import sessions

    return sessions.open_cores(bundle, manifest)


def open_layers(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> list[Layers]:
    """A bundle with a view into its components, by each engine that runs a half of it.

    Args:
        checkpoint: the float model.

    Raises:
        MissingDependency: an engine is not installed.
    """
    names = dict.fromkeys((manifest.seeing.engine, manifest.decoding.engine))
    return [find_engine(name).layers(bundle, manifest, checkpoint) for name in names]
