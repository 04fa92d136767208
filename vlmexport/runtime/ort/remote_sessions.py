"""Graphs on ONNX Runtime in a process of its own (``ort_worker``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from vlmexport.runtime.ort.sessions import Array
from vlmexport.runtime.stages import F32
from vlmexport.workers.process import WorkerProcess, own_python


def own_worker() -> WorkerProcess:
    """A worker of this interpreter, on this machine."""
    command = own_python("vlmexport.runtime.ort.worker")
    return WorkerProcess("onnxruntime", command, os.environ, "try again with more memory")


class WorkerSessions:
    """``ort_sessions.Sessions`` in a worker."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.worker = worker
        facts = worker.ask({"op": "start"}, "starting").body
        self.name: str = facts["name"]
        self.machine: str = facts["machine"]
        self.instructions: list[str] = facts["instructions"]

    def open(self, name: str, path: Path, threads: int, graph: bytes | None) -> None:
        """Open a graph file under a name."""
        request = {"op": "open", "name": name, "path": str(path), "threads": threads}
        instead = [] if graph is None else [np.frombuffer(graph, np.uint8)]
        self.worker.ask(request, f"opening {path}", *instead)

    def run(self, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of an open graph."""
        request: dict[str, Any] = {"op": "run", "name": name, "inputs": list(inputs)}
        reply = self.worker.ask(request, f"running {name}", *inputs.values())
        return dict(zip(reply.body["outputs"], reply.arrays, strict=True))

    def cache(self, name: str, length: int) -> _Cache:
        """An empty cache of an open decoder; the one before is gone."""
        turn = self.worker.ask({"op": "cache", "name": name, "length": length}, "decoding").body["turn"]
        return _Cache(self.worker, turn)

    def close(self) -> None:
        """End the process."""
        self.worker.close()


class _Cache:
    """A cache that the worker holds."""

    def __init__(self, worker: WorkerProcess, turn: int) -> None:
        self._worker, self._turn = worker, turn

    def step(self, embeds: F32, num_logits_to_keep: int) -> F32:
        """f32 [1, new, hidden] → logits f32 [1, num_logits_to_keep, vocabulary]."""
        request = {"op": "step", "turn": self._turn, "num_logits_to_keep": num_logits_to_keep}
        logits: F32 = self._worker.ask(request, "decoding", embeds).arrays[0]
        return logits
