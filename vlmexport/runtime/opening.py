"""The runtime of a bundle."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle import Manifest, read_manifest
from vlmexport.runtime.stages import Runtime


def open_runtime(bundle: Path, manifest: Manifest | None = None) -> Runtime:
    """Open a bundle with the runtime its manifest names.

    Raises:
        UsageError: not a bundle.
        MissingDependency: the runtime is not installed.
    """
    manifest = manifest or read_manifest(bundle)
    if manifest.kind == "onnx":
        from vlmexport.runtime.ort import OrtRuntime

        return OrtRuntime(bundle, manifest)
    if manifest.kind == "hybrid":
        from vlmexport.runtime.hybrid import HybridRuntime

        return HybridRuntime(bundle, manifest)
    from vlmexport.runtime.llamacpp import LlamaCppRuntime

    return LlamaCppRuntime(bundle, manifest)
