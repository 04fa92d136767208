"""The seeing half of an ONNX bundle or a hybrid: the vision encoder with its projector, and the projector alone."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from vlmexport.artifact.bundle.halves import ONNXRUNTIME, Role, SeeingHalf
from vlmexport.artifact.bundle.writing import Progress, Written
from vlmexport.artifact.onnx.build import whole_view
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.graphs import GraphWriter
from vlmexport.artifact.onnx.session import FEATURES
from vlmexport.artifact.onnx.sizes import vision_sizes
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint


class OnnxSeeing:
    """``onnx/vision_encoder*.onnx``, and for parity ``components/projector*.onnx``."""

    tools = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
    notes = ()

    def __init__(self, checkpoint: Checkpoint, settings: Onnx, graphs: FloatGraphs) -> None:
        self._settings, self._graphs, self._image_processor = settings, graphs, checkpoint.spec.image_processor
        self.sizes: dict[Role, int] = vision_sizes(checkpoint, settings)

    def refuse(self) -> None:
        """Whether a part can be traced, tracing shows."""

    def settle(self, measured: Measured, console: Console) -> None:
        """What was measured has decided."""

    def write(self, measured: Measured, folder: Path, progress: Progress) -> Written[SeeingHalf]:
        """Both graphs, and what the manifest says of them."""
        writer = GraphWriter(self._graphs, measured.int8, folder, progress)
        with SILENT:
            self._graphs.trace()
            writer.part("vision", self._settings.vision, fuses=self._settings.fuse, then=self._repair)
            writer.part("projector", self._settings.vision)
        half = SeeingHalf(
            engine=ONNXRUNTIME,
            precision=self._settings.vision,
            files=writer.files,
            outputs={"features": FEATURES},
            opset=trace.OPSET,
            reports=writer.reports,
        )
        return Written(half, writer.roles, writer.hashes, writer.float_layers)

    def _repair(self, model: ir.Model) -> None:
        """Of tiles, a client's view of the whole is made again."""
        if whole_view.can_repair(self._image_processor):
            whole_view.prepend(model, self._image_processor)
