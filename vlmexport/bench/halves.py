"""The two halves of a bundle, each in a worker that holds nothing else: what a component takes is seen there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from vlmexport.artifact.bundle.halves import LLAMA_CPP, ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.runtime.stages import Decoding, Seeing
from vlmexport.workers.process import WorkerProcess


@contextmanager
def vision_alone(bundle: Path, manifest: Manifest) -> Iterator[tuple[Seeing, WorkerProcess]]:
    """Tower and projector, without the decoder's weights; raises what ``open_runtime`` does."""
    if manifest.seeing.engine == LLAMA_CPP:
        from vlmexport.runtime.llamacpp.process import Process
        from vlmexport.runtime.llamacpp.runtime import LlamaCppVision

        with closing(Process()) as process:
            yield LlamaCppVision(bundle, manifest, process), process
        return
    from vlmexport.runtime.ort.remote_sessions import WorkerSessions, own_worker
    from vlmexport.runtime.ort.vision import OrtVision

    with closing(own_worker()) as worker:
        yield OrtVision(bundle.resolve(), manifest, sessions=WorkerSessions(worker)), worker


@contextmanager
def decoder_alone(bundle: Path, manifest: Manifest) -> Iterator[tuple[Decoding, WorkerProcess]]:
    """The decoder, without the tower's weights; raises what ``open_runtime`` does."""
    if manifest.decoding.engine == ONNXRUNTIME:
        from vlmexport.runtime.ort.remote_sessions import WorkerSessions, own_worker
        from vlmexport.runtime.ort.runtime import OrtRuntime

        with closing(own_worker()) as worker:
            yield OrtRuntime(bundle.resolve(), manifest, sessions=WorkerSessions(worker)), worker
        return
    from vlmexport.runtime.llamacpp.runtime import LlamaCppDecoder

    with closing(LlamaCppDecoder(bundle, manifest)) as decoder:
        yield decoder, decoder.process
