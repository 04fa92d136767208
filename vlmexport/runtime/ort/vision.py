"""Vision encoder and projector of a bundle on ONNX Runtime: the first three stages, whatever decodes the others."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.session import with_outputs
from vlmexport.processing.image import pixel_values
from vlmexport.processing.image_processor import read_told
from vlmexport.runtime.int8_kernels import Int8Kernels, find_kernels
from vlmexport.runtime.ort.sessions import MACHINES, Array, LocalSessions, Sessions
from vlmexport.runtime.stages import F32
from vlmexport.threads import operator_threads

_SEEING: tuple[Role, ...] = ("vision_encoder", "projector")


class OrtVision:
    """Pixels, features and tokens; sessions are opened when a stage first needs them.

    ``features`` reads the value inside the vision graph that the manifest names. ``tokens`` runs the projector alone,
    except on the very array that ``features`` returned last: those tokens came out of the whole vision graph, which is
    what users run.

    Args:
        threads: of one operator; ``operator_threads()`` where it is None.
        sessions: where the graphs run; in this process where it is None.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, threads: int | None = None, sessions: Sessions | None = None
    ) -> None:
        self.sessions = sessions or LocalSessions()
        self.name, self.notes = self.sessions.name, _notes(manifest, self.sessions.machine)
        self._bundle, self._manifest, self._threads = bundle, manifest, threads or operator_threads()
        self._image_processor = read_told(bundle, manifest.image_processor)
        self._last: tuple[F32, F32] | None = None
        self._open: set[str] = set()

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return pixel_values(image, self._image_processor)

    def features(self, pixels: F32) -> F32:
        """[1, 3, height, width] → [1, patches, vision width]."""
        outputs = self.run("vision_encoder", {"pixel_values": pixels})
        features = outputs[self._manifest.seeing.output("features")]
        self._last = (features, outputs["image_features"][None])
        return features

    def tokens(self, features: F32) -> F32:
        """[1, patches, vision width] → [1, visual tokens, hidden]."""
        if self._last is not None and features is self._last[0]:
            return self._last[1]
        return self.run("projector", {"features": features})["image_features"][None]

    def kernels(self) -> Int8Kernels:
        """Those that ONNX Runtime has where the sessions run."""
        return find_kernels(self.sessions)

    def close(self) -> None:
        """Release the sessions."""
        self._open.clear()
        self.sessions.close()

    def run(self, graph: Role, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs of a graph by the manifest's name for it."""
        return self.sessions.run(self.opened(graph), inputs)

    def opened(self, graph: Role) -> str:
        """The graph's name, once it is open."""
        if graph not in self._open:
            half = self._manifest.seeing if graph in _SEEING else self._manifest.decoding
            path = self._bundle / half.file(graph)
            outputs = [self._manifest.seeing.output("features")] if graph == "vision_encoder" else []
            also = with_outputs(path, outputs) if outputs else None
            self.sessions.open(graph, path, self._threads, also)
            self._open.add(graph)
        return graph


def _notes(manifest: Manifest, machine: str) -> tuple[str, ...]:
    target = manifest.recipe.target
    if target in MACHINES and machine not in MACHINES[target]:
        here = next((name for name, machines in MACHINES.items() if machine in machines), machine)
        return (f"{target} bundle run with {here} kernels",)
    return ()
