"""The graphs of one half: each compared with the float model, quantized where it is to be, and saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from vlmexport.artifact.bundle.contents import sha256
from vlmexport.artifact.bundle.halves import GraphReport, Role
from vlmexport.artifact.bundle.writing import Progress
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.names import graph_path
from vlmexport.artifact.onnx.passes import fuse_bias, kept_rows
from vlmexport.artifact.onnx.passes.clean import save, share
from vlmexport.artifact.onnx.passes.fuse_attention import fuse
from vlmexport.artifact.onnx.trace import compare as verify
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.static_int8 import Coverage

_GRAPHS: dict[str, Role] = {
    "vision": "vision_encoder", "projector": "projector", "language": "decoder_model_merged"
}  # fmt: skip
"""Part of the model → the graph that holds it."""


@dataclass
class GraphWriter:
    """Writes graphs to a folder, and keeps what the manifest says of them: ``files`` and ``reports`` by graph, layers
    that stayed in float, and SHA-256 by file.

    Args:
        int8: needed where a part is int8; it has decided about these graphs.
        genai: whether onnxruntime-genai runs them, too.
    """

    graphs: FloatGraphs
    int8: Int8 | None
    folder: Path
    progress: Progress
    genai: bool = True
    files: dict[Role, str] = field(default_factory=dict)
    reports: dict[Role, GraphReport] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, Role]:
        """File → graph."""
        return {path: role for role, path in self.files.items()}

    def part(
        self, part: str, precision: str, fuses: bool = False, then: Callable[[ir.Model], None] | None = None
    ) -> None:
        """Compare a part of the model, quantize it, and save its graph.

        Args:
            fuses: attention becomes one operator of ONNX Runtime, and a bias before a GELU part of its product.
            then: what else is done to the graph, last.
        """
        self.graphs.compare(part)
        model, report = self.graphs.model(part), GraphReport(precision=precision, nodes=0)
        if precision == "int8" and self.int8 is not None:
            self._quantize(model, part, self.int8, report)
        if fuses:
            fuse_bias.fuse(model)
            report.fused = fuse(model)
        if then:
            then(model)
        if part == "language" and self.graphs.generates:
            self.decoder(model, precision, report)
        else:
            self.save(_GRAPHS[part], model, precision, report)

    def decoder(self, model: ir.Model, precision: str, report: GraphReport | None = None) -> None:
        """Save a decoder with its weights outside, and again over these weights where onnxruntime-genai runs it."""
        self.save("decoder_model_merged", model, precision, report, outside=0)
        if not self.genai:
            return
        kept_rows.last_alone(model)
        self.share("decoder", "decoder_model_merged", model, precision)
        self.save("decoder", model, precision)

    def share(self, name: Role, other: Role, model: ir.Model, precision: str) -> None:
        """Let a graph that will be saved read the weights of another one."""
        share(model, self.path(name, precision), self.path(other, precision))

    def checked(self, name: Role, built: Traced, precision: str = "fp32") -> None:
        """Save a graph that was built, and compare the file with its module."""
        self.save(name, built.model, precision)
        verify.check(built, self.path(name, precision))

    def save(
        self, name: Role, model: ir.Model, precision: str, report: GraphReport | None = None,
        outside: int | None = None,
    ) -> None:  # fmt: skip
        """Write a graph; ``outside`` as of ``clean.save``."""
        path = self.path(name, precision)
        save(model, path, self.progress(name), outside)
        self.files[name] = graph_path(name, precision)
        self.reports[name] = report or GraphReport(precision=precision, nodes=0)
        self.reports[name].nodes = _count(model)
        # Here and not at the end, so that both threads hash.
        self.hashes |= {
            file.relative_to(self.folder).as_posix(): sha256(file) for file in sorted(path.parent.glob(f"{path.name}*"))
        }

    def path(self, name: Role, precision: str) -> Path:
        """Where a graph is written."""
        return self.folder / graph_path(name, precision)

    def _quantize(self, model: ir.Model, part: str, int8: Int8, report: GraphReport) -> None:
        report.nodes_float = _count(model)
        coverage, done = int8.apply(model, int8.decisions[part])
        report.two_terms, report.pair_max = coverage.twice, coverage.pair_max
        report.smoothed, report.bias_corrected = done["smoothed"], done["bias_corrected"]
        report.scheme, report.int8_share = int8.scheme.name, round(coverage.share, 6)
        self.float_layers |= _float_layers(coverage)


def _float_layers(coverage: Coverage) -> dict[str, str]:
    return {path: f"float32 ({reason})" for path, (_, reason) in coverage.float32.items()}


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph)
