"""ONNX Runtime as an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact.bundle.halves import ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest

if TYPE_CHECKING:
    from vlmexport.runtime.engines import Start
    from vlmexport.runtime.layers import Layers
    from vlmexport.source.checkpoint import Checkpoint

NAME = ONNXRUNTIME


def load() -> Start:
    """Import what runs bundles."""
    from vlmexport.runtime.ort.halves import OrtHalves

    return OrtHalves


def layers(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> Layers:
    """The graphs of a bundle, seen layer by layer."""
    from vlmexport.runtime.ort.layers import OrtLayers

    return OrtLayers(bundle, manifest)
