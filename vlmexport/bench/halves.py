"""The two halves of a bundle, each in a worker that holds nothing else: what a component takes is seen there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.runtime.engines import find_engine
from vlmexport.runtime.stages import Decoding, Seeing
from vlmexport.workers.process import WorkerProcess


@contextmanager
def vision_alone(bundle: Path, manifest: Manifest) -> Iterator[tuple[Seeing, WorkerProcess]]:
    """Tower and projector, without the decoder's weights; raises what ``open_runtime`` does."""
    with closing(find_engine(manifest.seeing.engine).load()(bundle, manifest, in_worker=True)) as engine:
        assert engine.worker is not None
        yield engine.seeing(), engine.worker


@contextmanager
def decoder_alone(bundle: Path, manifest: Manifest) -> Iterator[tuple[Decoding, WorkerProcess]]:
    """The decoder, without the tower's weights; raises what ``open_runtime`` does."""
    with closing(find_engine(manifest.decoding.engine).load()(bundle, manifest, in_worker=True)) as engine:
        assert engine.worker is not None
        yield engine.decoding(), engine.worker
