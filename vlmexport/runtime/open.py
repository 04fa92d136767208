"""The runtime of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vlmexport.artifact.bundle.halves import LLAMA_CPP, ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.runtime.stages import Runtime

if TYPE_CHECKING:
    from vlmexport.runtime.layers import Layers
    from vlmexport.source.checkpoint import Checkpoint

Machine = Literal["arm64"]
"""Another machine, whose kernels a bundle can be run on here."""


def open_runtime(bundle: Path, manifest: Manifest | None = None) -> Runtime:
    """Open a bundle with the runtime its manifest names.

    Raises:
        UsageError: not a bundle.
        MissingDependency: the runtime is not installed.
    """
    manifest = manifest or read_manifest(bundle)
    seeing, decoding = manifest.seeing.engine, manifest.decoding.engine
    if (seeing, decoding) == (ONNXRUNTIME, ONNXRUNTIME):
        from vlmexport.runtime.ort.runtime import OrtRuntime

        return OrtRuntime(bundle, manifest)
    if seeing == ONNXRUNTIME:
        from vlmexport.runtime.joined import HybridRuntime

        return HybridRuntime(bundle, manifest)
    from vlmexport.runtime.llamacpp.runtime import LlamaCppRuntime

    return LlamaCppRuntime(bundle, manifest)


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
    """A bundle with a view into its components: of a hybrid, into those of each of its runtimes.

    Args:
        checkpoint: the float model.

    Raises:
        MissingDependency: the runtime is not installed.
    """
    found: list[Layers] = []
    if ONNXRUNTIME in (manifest.seeing.engine, manifest.decoding.engine):
        from vlmexport.runtime.ort.layers import OrtLayers

        found.append(OrtLayers(bundle, manifest))
    if LLAMA_CPP in (manifest.seeing.engine, manifest.decoding.engine):
        from vlmexport.runtime.llamacpp.layers import LlamaCppLayers

        found.append(LlamaCppLayers(bundle, manifest, checkpoint))
    return found
