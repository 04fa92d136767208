"""The process that holds ONNX Runtime for arm64: of packages, it needs NumPy and onnxruntime alone.

Run as ``python -m vlmexport.runtime.ort.worker``; requests on stdin, replies on stdout (``wire``).
"""

from __future__ import annotations

from pathlib import Path

from vlmexport.errors import VlmExportError
from vlmexport.runtime.ort.sessions import Array, Cache, LocalSessions
from vlmexport.workers.memory import peak_bytes
from vlmexport.workers.wire import Message, serve


class Worker:
    """Answers requests one at a time; of caches it keeps the last."""

    def __init__(self) -> None:
        self._sessions = LocalSessions()
        self._cache: Cache | None = None
        self._turn = 0

    def answer(self, request: Message) -> Message:
        """Run the operation that ``body["op"]`` names."""
        body = dict(request.body)
        operation = getattr(self, f"do_{body.pop('op')}")
        reply: Message = operation(*request.arrays, **body)
        return reply

    def do_start(self) -> Message:
        """What runs here, and which of the instructions that int8 kernels differ by this core has."""
        here = self._sessions
        return Message({"name": here.name, "machine": here.machine, "instructions": here.instructions})

    def do_peak(self) -> Message:
        """The most memory that this process has held."""
        return Message({"bytes": peak_bytes()})

    def do_open(self, *graph: Array, name: str, path: str, threads: int) -> Message:
        """Open a graph file, or the bytes that are given in its place."""
        self._sessions.open(name, Path(path), threads, graph[0].tobytes() if graph else None)
        return Message({})

    def do_run(self, *arrays: Array, name: str, inputs: list[str]) -> Message:
        """All outputs of a graph."""
        outputs = self._sessions.run(name, dict(zip(inputs, arrays, strict=True)))
        return Message({"outputs": list(outputs)}, list(outputs.values()))

    def do_cache(self, name: str, length: int) -> Message:
        """An empty cache; the one before is gone."""
        self._turn += 1
        self._cache = self._sessions.cache(name, length)
        return Message({"turn": self._turn})

    def do_step(self, embeds: Array, turn: int, num_logits_to_keep: int) -> Message:
        """A step of the decoder through the cache of that turn."""
        if turn != self._turn or self._cache is None:
            raise VlmExportError("the cache of this answer is gone", "finish an answer before you begin another")
        return Message({}, [self._cache.step(embeds, num_logits_to_keep)])


if __name__ == "__main__":
    serve(Worker().answer)
