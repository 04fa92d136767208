"""What every layer of a GGUF bundle gives for one input, by the layer's path in the float model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmexport.artifact.bundle.halves import LLAMA_CPP
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.gguf import language as gguf_language
from vlmexport.artifact.gguf import mmproj
from vlmexport.artifact.onnx.read.layer_outputs import Boundary
from vlmexport.errors import VlmExportError
from vlmexport.model import plugins
from vlmexport.runtime.layers import NUM_LOGITS_TO_KEEP, Component
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.llamacpp.vision import LlamaCppVision
from vlmexport.runtime.stages import F32
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.threads import operator_threads

_WEIGHT = ".weight"


class LlamaCppLayers:
    """llama.cpp with its evaluation callback: products by weights show what they give. Norms do not, and neither do
    convolutions, whose weight ggml reshapes first.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
    """

    def __init__(self, bundle: Path, manifest: Manifest, checkpoint: Checkpoint, threads: int | None = None) -> None:
        self._ends: dict[Component, list[Boundary]] = {"language": _language(checkpoint)}
        self._process = Process()
        try:
            language = str(bundle / manifest.decoding.file("language"))
            request = {"op": "open", "language": language, "threads": threads or operator_threads(), "watched": True}
            self._process.ask(request, f"loading {language}")
            if manifest.seeing.engine == LLAMA_CPP:
                self._repair = LlamaCppVision(bundle, manifest, self._process, threads=threads).repair
                self._ends |= {"vision": _vision(checkpoint), "projector": _projector(checkpoint)}
        except VlmExportError:
            self.close()
            raise

    def ends(self, component: Component) -> list[Boundary]:
        """Of its layers, in the order in which they run; the stage itself is the last."""
        return self._ends.get(component, [])

    def values(self, component: Component, given: F32, ends: Sequence[Boundary]) -> list[F32]:
        """The values there; empty arrays where llama.cpp's graph has no such product."""
        names = [end.value for end in ends if end.path != component]
        request: dict[str, Any] = {"op": f"{component}_layers", "names": names}
        if component == "vision":
            request["repair"] = self._repair
        if component == "language":
            request["num_logits_to_keep"] = NUM_LOGITS_TO_KEEP
        found = self._process.ask(request, f"looking into {component}", given).arrays
        return found if ends[-1].path == component else found[:-1]

    def close(self) -> None:
        """End the worker."""
        self._process.close()


def _language(checkpoint: Checkpoint) -> list[Boundary]:
    spec = checkpoint.spec.language
    tensors = gguf_language.tensors_of(checkpoint)
    entries = gguf_language.entries(spec, tensors, dict.fromkeys(tensors, "f32"), None)
    heads = {entry.name: entry.heads for entry in entries}
    found = [
        Boundary(path, name, without_bias=True, heads=heads.get(name, 0))
        for path, name in gguf_language.importance_names(spec).items()
    ]
    return [*found, Boundary("language", "")]


def _vision(checkpoint: Checkpoint) -> list[Boundary]:
    spec = checkpoint.spec.vision
    prefix, inside = plugins.vision(spec).layers(spec), plugins.gguf_tower(spec).inside
    parts = [f"{prefix}{layer}.{part}.weight" for layer in range(spec.used_layers) for part in inside]
    held = {name: mmproj.tower_name(name, spec) for name in parts}
    return [*_products("vision", {name: other for name, other in held.items() if other}), Boundary("vision", "")]


def _projector(checkpoint: Checkpoint) -> list[Boundary]:
    names = mmproj.projector_of(checkpoint.spec).tensors
    return [*_products("projector", dict(names)), Boundary("projector", "")]


def _products(component: str, names: dict[str, str]) -> list[Boundary]:
    """Weight's name in the float model → in GGUF."""
    return [
        Boundary(f"{component}.{name.removesuffix(_WEIGHT)}", held, without_bias=True)
        for name, held in names.items()
        if name.endswith(_WEIGHT)
    ]
