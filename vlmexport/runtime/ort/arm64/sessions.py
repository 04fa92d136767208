"""An ONNX bundle on arm64's own kernels: ONNX Runtime for arm64 in a process of its own, under QEMU where need be."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vlmexport.artifact.bundle.halves import ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.errors import UsageError
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.arm64.root import command, cores, environment, native, root_folder
from vlmexport.runtime.ort.halves import OrtHalves
from vlmexport.runtime.ort.remote_sessions import WorkerSessions
from vlmexport.workers.process import WorkerProcess

_CURE = "try again with more memory, or check without --on arm64"


def open_cores(bundle: Path, manifest: Manifest) -> dict[str, Joined]:
    """A runtime a core: each core that is emulated, or the one of this machine.

    Raises:
        UsageError: not an ONNX bundle.
        MissingDependency: this machine is not arm64, and nothing is set up to emulate one.
        VlmExportError: a worker died.
    """
    if {manifest.seeing.engine, manifest.decoding.engine} != {ONNXRUNTIME}:
        raise UsageError(
            f"{bundle} is a {manifest.kind} bundle, and arm64 is checked with ONNX bundles alone",
            "make one with `vlmexport onnx --target arm64`",
        )
    found: dict[str, Joined] = {}
    try:
        for core in cores():
            found[core] = join(OrtHalves(bundle, manifest, sessions=Arm64Sessions(core)))
    except BaseException:
        for runtime in found.values():
            runtime.close()
        raise
    return found


class Arm64Sessions(WorkerSessions):
    """``ort_sessions.Sessions`` on a core of arm64."""

    def __init__(self, core: str) -> None:
        root = root_folder()
        super().__init__(WorkerProcess(f"onnxruntime on {core}", command(root), environment(root, core), _CURE))
        has = f" ({', '.join(self.instructions)})" if self.instructions else ""
        where = "" if native() else f" under {_qemu(root)}"
        self.name = f"{self.name} on arm64 {core}{has}{where}"


def _qemu(root: Path) -> str:
    """``QEMU 10.0.13``."""
    said = subprocess.run([str(root / "qemu-aarch64"), "--version"], capture_output=True, text=True, check=True).stdout
    return f"QEMU {said.split()[2]}"
