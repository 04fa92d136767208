"""An ONNX bundle on arm64's own kernels: ONNX Runtime for arm64 in a process of its own, under QEMU where need be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from vlmexport.artifact.bundle import Manifest
from vlmexport.errors import UsageError
from vlmexport.runtime.arm64_root import command, cores, environment, native, root_folder
from vlmexport.runtime.ort import OrtRuntime
from vlmexport.runtime.ort_sessions import Array
from vlmexport.runtime.stages import F32
from vlmexport.runtime.worker_process import WorkerProcess

_CURE = "try again with more memory, or check without --on arm64"


def open_cores(bundle: Path, manifest: Manifest) -> dict[str, OrtRuntime]:
    """A runtime a core: each core that is emulated, or the one of this machine.

    Raises:
        UsageError: not an ONNX bundle.
        MissingDependency: this machine is not arm64, and nothing is set up to emulate one.
        VlmExportError: a worker died.
    """
    if manifest.kind != "onnx":
        raise UsageError(
            f"{bundle} is a {manifest.kind} bundle, and arm64 is checked with ONNX bundles alone",
            "make one with `vlmexport onnx --target arm64`",
        )
    found: dict[str, OrtRuntime] = {}
    try:
        for core in cores():
            found[core] = OrtRuntime(bundle.resolve(), manifest, sessions=Arm64Sessions(core))
    except BaseException:
        for runtime in found.values():
            runtime.close()
        raise
    return found


class Arm64Sessions:
    """``ort_sessions.Sessions`` on a core of arm64."""

    def __init__(self, core: str) -> None:
        root = root_folder()
        self._worker = WorkerProcess(f"onnxruntime on {core}", command(root), environment(root, core), _CURE)
        facts = self._worker.ask({"op": "start"}, "starting").body
        self.machine: str = facts["machine"]
        has = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
        where = "" if native() else f" under {_qemu(root)}"
        self.name = f"{facts['name']} on arm64 {core}{has}{where}"

    def open(self, name: str, path: Path, threads: int, graph: bytes | None) -> None:
        """Open a graph file under a name."""
        request = {"op": "open", "name": name, "path": str(path), "threads": threads}
        instead = [] if graph is None else [np.frombuffer(graph, np.uint8)]
        self._worker.ask(request, f"opening {path}", *instead)

    def run(self, name: str, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of an open graph."""
        request: dict[str, Any] = {"op": "run", "name": name, "inputs": list(inputs)}
        reply = self._worker.ask(request, f"running {name}", *inputs.values())
        return dict(zip(reply.body["outputs"], reply.arrays, strict=True))

    def cache(self, name: str, length: int) -> _Cache:
        """An empty cache of an open decoder; the one before is gone."""
        turn = self._worker.ask({"op": "cache", "name": name, "length": length}, "decoding").body["turn"]
        return _Cache(self._worker, turn)

    def close(self) -> None:
        """End the process."""
        self._worker.close()


class _Cache:
    """A cache that the worker holds."""

    def __init__(self, worker: WorkerProcess, turn: int) -> None:
        self._worker, self._turn = worker, turn

    def step(self, embeds: F32) -> F32:
        """f32 [1, new, hidden] → logits f32 [1, new, vocabulary]."""
        logits: F32 = self._worker.ask({"op": "step", "turn": self._turn}, "decoding", embeds).arrays[0]
        return logits


def _qemu(root: Path) -> str:
    """``QEMU 10.0.13``."""
    said = subprocess.run([str(root / "qemu-aarch64"), "--version"], capture_output=True, text=True, check=True).stdout
    return f"QEMU {said.split()[2]}"
