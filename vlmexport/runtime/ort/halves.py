"""Halves of a bundle on ONNX Runtime, in the same sessions."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.runtime.ort.decoder import OrtDecoder
from vlmexport.runtime.ort.remote_sessions import WorkerSessions, own_worker
from vlmexport.runtime.ort.sessions import LocalSessions, Sessions
from vlmexport.runtime.ort.vision import OrtVision


class OrtHalves:
    """Both, or one.

    Args:
        in_worker: in a process of its own.
        threads: of one operator; ``operator_threads()`` where it is None.
        sessions: where the graphs run; in this process where it is None.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        *,
        in_worker: bool = False,
        threads: int | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        self.worker = own_worker() if in_worker else None
        remote = WorkerSessions(self.worker) if self.worker else None
        self.sessions = sessions or remote or LocalSessions()
        self._bundle, self._manifest, self._threads = bundle.resolve(), manifest, threads

    def seeing(self) -> OrtVision:
        """Vision encoder and projector."""
        return OrtVision(self._bundle, self._manifest, self.sessions, self._threads)

    def decoding(self) -> OrtDecoder:
        """Language model and tokenizer."""
        return OrtDecoder(self._bundle, self._manifest, self.sessions, self._threads)

    def close(self) -> None:
        """Release the sessions."""
        self.sessions.close()
