"""Vision encoder and projector of a bundle on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.processing.image import ProcessedImage, batched, process
from vlmexport.processing.image_processor import read_told
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.ort.graphs import Graphs, machine_notes
from vlmexport.runtime.ort.int8_kernels import find_kernels
from vlmexport.runtime.ort.sessions import Sessions
from vlmexport.runtime.stages import F32, Features


class OrtVision:
    """Pixels, features and tokens; sessions are opened when a stage first needs them.

    ``features`` runs the whole vision graph, which is what users run, and reads the value inside of it that the
    manifest names; the tokens that came out go with them. ``tokens`` of features from elsewhere runs the projector
    alone.

    Args:
        sessions: where the graphs run.
        threads: of one operator; ``operator_threads()`` where it is None.
    """

    def __init__(self, bundle: Path, manifest: Manifest, sessions: Sessions, threads: int | None = None) -> None:
        self.name, self.notes = sessions.name, machine_notes(manifest, sessions.machine)
        self._half, self._graphs = manifest.seeing, Graphs(bundle, manifest.seeing, sessions, threads)
        self._image_processor = read_told(bundle, manifest.image_processor)
        self._grid = manifest.token_grid

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return process(image, self._image_processor, self._grid)

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view, and the tokens behind it."""
        name = self._half.output("features")
        views: list[F32] = []
        tokens: list[F32] = []
        for part in image.slices():
            outputs = self._graphs.run("vision_encoder", batched(part, self._image_processor), name)
            views.extend(outputs[name])
            tokens.append(outputs["image_features"])
        return Features(tuple(views), np.concatenate(tokens))

    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        if features.tokens is not None:
            return features.tokens
        made = [self._graphs.run("projector", {"features": view[None]})["image_features"] for view in features.views]
        return np.concatenate(made)

    def kernels(self) -> Int8Kernels | None:
        """Those that ONNX Runtime has where the sessions run; None where this half is float."""
        return find_kernels(self._graphs.sessions) if self._half.precision == "int8" else None

    def close(self) -> None:
        """Release the sessions."""
        self._graphs.close()
