"""Vision encoder and projector of a bundle on ONNX Runtime: the first three stages, whatever decodes the others."""

from __future__ import annotations

import platform
from functools import cached_property
from pathlib import Path

import onnxruntime
from PIL import Image

from vlmexport.artifact.bundle import Manifest
from vlmexport.artifact.session import THREADS, open_session, run
from vlmexport.checkpoint import VisionSpec
from vlmexport.model.pixels import pixel_values
from vlmexport.runtime.stages import F32

_MACHINES = {"x86": ("x86_64", "amd64", "i386", "i686"), "arm64": ("arm64", "aarch64")}


class OrtVision:
    """Pixels, features and tokens; sessions are opened when a stage first needs them.

    ``features`` reads the value inside the vision graph that the manifest names. ``tokens`` runs the projector alone,
    except on the very array that ``features`` returned last: those tokens came out of the whole vision graph, which is
    what users run.
    """

    def __init__(self, bundle: Path, manifest: Manifest, threads: int = THREADS) -> None:
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.notes = _notes(manifest)
        self._bundle, self.details, self._threads = bundle, manifest.details, threads
        self._vision_spec = VisionSpec(**manifest.source.spec["vision"])
        self._last: tuple[F32, F32] | None = None

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return pixel_values(image, self._vision_spec).numpy()

    def features(self, pixels: F32) -> F32:
        """[1, 3, height, width] → [1, patches, vision width]."""
        outputs = run(self._vision, {"pixel_values": pixels})
        features = outputs[self.details["features"]]
        self._last = (features, outputs["image_features"][None])
        return features

    def tokens(self, features: F32) -> F32:
        """[1, patches, vision width] → [1, visual tokens, hidden]."""
        if self._last is not None and features is self._last[0]:
            return self._last[1]
        return run(self._projector, {"features": features})["image_features"][None]

    def close(self) -> None:
        """Release the sessions."""
        for name in ("_vision", "_projector"):
            self.__dict__.pop(name, None)

    @cached_property
    def _vision(self) -> onnxruntime.InferenceSession:
        return self._open("vision_encoder", self.details["features"])

    @cached_property
    def _projector(self) -> onnxruntime.InferenceSession:
        return self._open("projector")

    def _open(self, graph: str, also: str | None = None) -> onnxruntime.InferenceSession:
        return open_session(self._bundle / self.details["graphs"][graph], self._threads, also)


def _notes(manifest: Manifest) -> tuple[str, ...]:
    target, machine = manifest.recipe.target, platform.machine().lower()
    if target in _MACHINES and machine not in _MACHINES[target]:
        here = next((name for name, machines in _MACHINES.items() if machine in machines), machine)
        return (f"{target} bundle run with {here} kernels",)
    return ()
