"""What every layer of an ONNX bundle gives for one input, by the layer's path in the float model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_layers
from vlmexport.artifact.onnx.read.layer_outputs import Boundary, boundaries
from vlmexport.artifact.onnx.session import empty_cache, open_session, rows_to_keep, run, with_outputs
from vlmexport.processing.image import batched
from vlmexport.runtime.layers import NUM_LOGITS_TO_KEEP, Component
from vlmexport.runtime.stages import F32

GRAPHS: dict[Component, Role] = {
    "vision": "vision_encoder",
    "projector": "projector",
    "language": "decoder_model_merged",
}
_INPUTS: dict[Component, str] = {"vision": "pixel_values", "projector": "features", "language": "inputs_embeds"}

_OUTPUTS = {"projector": "image_features", "language": "logits"}


class OrtLayers:
    """The graphs of a bundle, each with the ends of its layers as more outputs."""

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        graphs = manifest.graphs()
        self._image_processor = manifest.image_processor
        self._outputs = _OUTPUTS | {"vision": manifest.seeing.output("features")}
        self._paths = {part: bundle / graphs[name] for part, name in GRAPHS.items() if name in graphs}
        self._smoothed = {part: manifest.smoothed(name) for part, name in GRAPHS.items()}

    def ends(self, component: Component) -> list[Boundary]:
        """Of its layers, in the order in which they run, and of the component; layers that another one was folded into
        give something else on purpose, and are left out."""
        if component not in self._paths:
            return []
        path = self._paths[component]
        left_out = _folded_into(path, self._smoothed[component])
        inside = [end for end in boundaries(path) if end.path.startswith(f"{component}.") and end.path not in left_out]
        return [*inside, Boundary(component, self._outputs[component])]

    def values(self, component: Component, given: F32, ends: Sequence[Boundary]) -> list[F32]:
        """The values there, for pixels, features or embeddings, as they are in the float model's chain."""
        path = self._paths[component]
        names = list(dict.fromkeys(end.value for end in ends if end.value not in _OUTPUTS.values()))
        session = open_session(path, graph=with_outputs(path, names))
        inputs = _inputs(session, component, given)
        outputs = run(session, batched(inputs, self._image_processor) if component == "vision" else inputs)
        return [outputs[end.value] for end in ends]

    def close(self) -> None:
        """Nothing stays open."""


def _folded_into(path: Path, smoothed: set[str]) -> set[str]:
    """Norms and layers whose outputs are divided by a smoothed layer's scales."""
    found: set[str] = set()
    for layer in int8_layers(path) if smoothed else ():
        if layer.path in smoothed:
            norm = layer.divisor[0].removesuffix(".weight") if layer.divisor else None
            found |= {name for name in (norm, layer.maker) if name}
    return found


def _inputs(session: onnxruntime.InferenceSession, component: Component, given: F32) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray] = {_INPUTS[component]: given}
    if component != "language":
        return inputs
    length = given.shape[1]
    more: dict[str, np.ndarray] = {
        "attention_mask": np.ones((1, length), np.int64), "position_ids": np.arange(length)[None]
    }  # fmt: skip
    taken = {value.name for value in session.get_inputs()}
    inputs |= {name: value for name, value in more.items() if name in taken}
    return inputs | rows_to_keep(session, NUM_LOGITS_TO_KEEP) | empty_cache(session)
