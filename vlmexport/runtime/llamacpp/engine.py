"""llama.cpp as an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact.bundle.halves import LLAMA_CPP
from vlmexport.artifact.bundle.manifest import Manifest

if TYPE_CHECKING:
    from vlmexport.runtime.engines import Start
    from vlmexport.runtime.layers import Layers
    from vlmexport.source.checkpoint import Checkpoint

NAME = LLAMA_CPP


def load() -> Start:
    """Import what runs bundles."""
    from vlmexport.runtime.llamacpp.halves import LlamaCppHalves

    return LlamaCppHalves


def layers(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> Layers:
    """Products by weights of a bundle, seen layer by layer."""
    from vlmexport.runtime.llamacpp.layers import LlamaCppLayers

    return LlamaCppLayers(bundle, manifest, checkpoint)
