"""The float graphs of a checkpoint: its parts traced or found in the cache, with all layers and all weights.

What is traced is a sketch of the model, with few layers and random weights, and is compared with PyTorch as such. Then
its layers are repeated, and the checkpoint's weights take the place of the random ones; they are read when they are
written.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from vlmexport.artifact.onnx.passes import attach_weights, fold_batch_norm, repeat_layers
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.trace import compare as verify
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.artifact.onnx.trace.cache import Part, Traces, pack, unpack
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.model import plugins
from vlmexport.model.sketch import cut, prefix, sketch
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint


class FloatGraphs:
    """The traced graphs of one bundle. A fused decoder is built, and a hybrid's is a GGUF file: they have none.

    Args:
        scratch: a folder for graphs of the sketch with their weights; it must last as long as this object is used.
            None where nothing is traced.
    """

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, scratch: Path | None) -> None:
        self._checkpoint, self._settings, self._scratch = checkpoint, recipe.onnx, scratch
        vision_only = recipe.format == "gguf" or recipe.onnx.fused_decoder
        self._components = COMPONENTS[:2] if vision_only else COMPONENTS
        self._traced: dict[str, tuple[Traced, Path, bytes]] = {}
        self._parts: dict[str, Part] = {}
        self._complete: set[str] = set()

    @property
    def generates(self) -> bool:
        """Whether the language model generates text."""
        return self._checkpoint.spec.language.generates

    @cached_property
    def _kept(self) -> Traces:
        return Traces(cut(self._checkpoint.spec, repeat_layers.TRACED))

    def trace(self) -> None:
        """Find the parts in the cache, and trace the others; nothing where that was done."""
        if self._parts:
            return
        spec = self._checkpoint.spec
        found = {name: self._kept.find(name) for name in self._components}
        missing = tuple(name for name, part in found.items() if part is None)
        if missing:
            with SILENT:
                self._sketch = sketch(spec, repeat_layers.TRACED, self._components)
                self._traced = {name: self._trace(name) for name in missing}
        # What was traced goes on as it would be read from the cache, so both ways give the same bytes.
        self._parts = {name: part or unpack(self._traced[name][2]) for name, part in found.items()}

    def _trace(self, part: str) -> tuple[Traced, Path, bytes]:
        assert self._scratch is not None
        traced = trace.PARTS[part](self._sketch)
        path = self._scratch / f"{part}.onnx"
        save(traced.model, path)
        transposed = attach_weights.orientations(traced.model, dict(self._sketch.state_dict()))
        return traced, path, pack(Part(traced.name, traced.model, transposed))

    def compare(self, name: str) -> None:
        """A graph that was traced now with what it was traced from; then it is kept.

        Raises:
            ParityFailed: it is not the float model.
        """
        self.trace()
        if name not in self._traced:
            return
        traced, path, packed = self._traced[name]
        verify.check(traced, path)
        if name == "language":
            verify.check_cache(self._sketch, path)
        self._kept.keep(name, packed)

    def part(self, name: str) -> Part:
        """A part with all layers and the checkpoint's weights; the same object at each call.

        Raises:
            Unsupported: it cannot be traced.
            CheckpointError: a weight is missing.
        """
        self.trace()
        found, spec = self._parts[name], self._checkpoint.spec
        if name not in self._complete:
            self._complete.add(name)
            if name == "language" and self.generates:  # a sketch has few tokens, and all classes
                trace.name_logits(found.model, spec.language.vocab_size)
            attach_weights.attach(found.model, found.transposed, self._checkpoint)
            if count := self._layers(name):
                following = attach_weights.next_layer(self._checkpoint)
                repeat_layers.repeat(found.model, prefix(spec, name), count, following)
            fold_batch_norm.fold(found.model)
        return found

    def model(self, name: str) -> ir.Model:
        """The graph of a part, as ``part`` says."""
        return self.part(name).model

    def _layers(self, name: str) -> int:
        """Layers of a part's stack; 0 where it has none."""
        spec = self._checkpoint.spec
        if name == "language":
            return spec.language.num_layers
        is_stack = name == "vision" and plugins.vision(spec.vision).layers(spec.vision) is not None
        return spec.vision.used_layers if is_stack else 0
