"""The graphs of one half of a bundle, opened when they are first run."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle.halves import DecodingHalf, Role, SeeingHalf
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.session import with_outputs
from vlmexport.runtime.ort.sessions import MACHINES, Array, Sessions
from vlmexport.threads import operator_threads


class Graphs:
    """By their roles.

    Args:
        threads: of one operator; ``operator_threads()`` where it is None.
    """

    def __init__(
        self, bundle: Path, half: SeeingHalf | DecodingHalf, sessions: Sessions, threads: int | None = None
    ) -> None:
        self.sessions = sessions
        self._bundle, self._half, self._threads = bundle, half, threads or operator_threads()
        self._open: set[Role] = set()

    def run(self, graph: Role, inputs: dict[str, Array], *more: str) -> dict[str, Array]:
        """All outputs of a graph, and the values inside of it that are named here."""
        return self.sessions.run(self.opened(graph, *more), inputs)

    def opened(self, graph: Role, *more: str) -> Role:
        """The graph's name in the sessions, once it is open; ``more`` as in ``run``, the same every time."""
        if graph not in self._open:
            path = self._bundle / self._half.file(graph)
            self.sessions.open(graph, path, self._threads, with_outputs(path, more) if more else None)
            self._open.add(graph)
        return graph

    def close(self) -> None:
        """Release the sessions."""
        self._open.clear()
        self.sessions.close()


def machine_notes(manifest: Manifest, machine: str) -> tuple[str, ...]:
    """What the verdict must say where a bundle runs on another machine than it was made for."""
    target = manifest.recipe.target
    if target in MACHINES and machine not in MACHINES[target]:
        here = next((name for name, machines in MACHINES.items() if machine in machines), machine)
        return (f"{target} bundle run with {here} kernels",)
    return ()
