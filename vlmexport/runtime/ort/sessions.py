"""Graphs on ONNX Runtime, by name: in this process, or wherever else something has the same four methods."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt
import onnxruntime

from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.runtime.instructions import instructions
from vlmexport.runtime.ort.cache import open_cache
from vlmexport.runtime.stages import F32

Array = npt.NDArray[Any]
MACHINES = {"x86": ("x86_64", "amd64", "i386", "i686"), "arm64": ("arm64", "aarch64")}
"""Target → what ``platform.machine()`` calls it."""


class Cache(Protocol):
    """A decoder's keys and values, which each step adds to."""

    def step(self, embeds: F32, num_logits_to_keep: int) -> F32:
        """f32 [1, new, hidden] → logits of the last positions f32 [1, num_logits_to_keep, vocabulary]; 0 for all."""


class Sessions(Protocol):
    """Where the graphs of a bundle run."""

    name: str
    """Runtime, version and machine, e.g. ``onnxruntime 1.31.1``."""

    machine: str
    """What ``platform.machine()`` says there."""

    instructions: list[str]
    """Of those that int8 kernels differ by, what the processor there has."""

    def open(self, name: str, path: Path, threads: int, graph: bytes | None) -> None:
        """Open a graph file under a name; ``graph`` as in ``open_session``."""

    def run(self, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of an open graph."""

    def cache(self, name: str, length: int) -> Cache:
        """An empty cache of an open decoder, for at most ``length`` positions; one before it may be gone."""

    def close(self) -> None:
        """Release all."""


class LocalSessions:
    """In this process."""

    def __init__(self) -> None:
        self.name, self.machine = f"onnxruntime {onnxruntime.__version__}", platform.machine().lower()
        self.instructions = instructions()
        self._open: dict[str, onnxruntime.InferenceSession] = {}

    def open(self, name: str, path: Path, threads: int, graph: bytes | None) -> None:
        """Open a graph file under a name."""
        self._open[name] = open_session(path, threads, graph)

    def run(self, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of an open graph."""
        return run(self._open[name], inputs)

    def cache(self, name: str, length: int) -> Cache:
        """An empty cache of an open decoder."""
        return open_cache(self._open[name], length)

    def close(self) -> None:
        """Release all."""
        self._open.clear()
