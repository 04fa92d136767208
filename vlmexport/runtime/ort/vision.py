"""Vision encoder and projector of a bundle on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.processing.image import pixel_values
from vlmexport.processing.image_processor import read_told
from vlmexport.runtime.int8_kernels import Int8Kernels, find_kernels
from vlmexport.runtime.ort.graphs import Graphs, machine_notes
from vlmexport.runtime.ort.sessions import Sessions
from vlmexport.runtime.stages import F32


class OrtVision:
    """Pixels, features and tokens; sessions are opened when a stage first needs them.

    ``features`` reads the value inside the vision graph that the manifest names. ``tokens`` runs the projector alone,
    except on the very array that ``features`` returned last: those tokens came out of the whole vision graph, which is
    what users run.

    Args:
        sessions: where the graphs run.
        threads: of one operator; ``operator_threads()`` where it is None.
    """

    def __init__(self, bundle: Path, manifest: Manifest, sessions: Sessions, threads: int | None = None) -> None:
        self.name, self.notes = sessions.name, machine_notes(manifest, sessions.machine)
        self._half, self._graphs = manifest.seeing, Graphs(bundle, manifest.seeing, sessions, threads)
        self._image_processor = read_told(bundle, manifest.image_processor)
        self._last: tuple[F32, F32] | None = None

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return pixel_values(image, self._image_processor)

    def features(self, pixels: F32) -> F32:
        """[1, 3, height, width] → [1, patches, vision width]."""
        name = self._half.output("features")
        outputs = self._graphs.run("vision_encoder", {"pixel_values": pixels}, name)
        features = outputs[name]
        self._last = (features, outputs["image_features"][None])
        return features

    def tokens(self, features: F32) -> F32:
        """[1, patches, vision width] → [1, visual tokens, hidden]."""
        if self._last is not None and features is self._last[0]:
            return self._last[1]
        return self._graphs.run("projector", {"features": features})["image_features"][None]

    def kernels(self) -> Int8Kernels | None:
        """Those that ONNX Runtime has where the sessions run; None where this half is float."""
        return find_kernels(self._graphs.sessions) if self._half.precision == "int8" else None

    def close(self) -> None:
        """Release the sessions."""
        self._graphs.close()
