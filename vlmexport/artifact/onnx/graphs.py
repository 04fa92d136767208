"""The graphs of an ONNX bundle: each compared with the float model, quantized where it is to be, and saved."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Event

import onnx_ir as ir

from vlmexport.artifact.bundle.contents import sha256
from vlmexport.artifact.bundle.halves import LABELS, GraphReport, Role
from vlmexport.artifact.onnx.build import embedding, fused_decoder
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.passes import kept_rows
from vlmexport.artifact.onnx.passes.clean import save, share
from vlmexport.artifact.onnx.passes.fuse_attention import fuse
from vlmexport.artifact.onnx.sizes import sizes, vision_sizes
from vlmexport.artifact.onnx.trace import compare as verify
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.console import Advance, Console, no_advance
from vlmexport.errors import VlmExportError
from vlmexport.model import plugins
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.static_int8 import Coverage
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

_GRAPHS: dict[str, Role] = {
    "vision": "vision_encoder", "projector": "projector", "language": "decoder_model_merged"
}  # fmt: skip
"""Part of the model → the graph that holds it."""

_FOLDERS: dict[Role, str] = {
    "vision_encoder": "onnx/", "embed_tokens": "onnx/", "decoder_model_merged": "onnx/", "projector": "components/",
    "embedding": "", "decoder": "",
}  # fmt: skip
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "int4": "_q4"}


@dataclass
class Written:
    """What the manifest and the clients' files say about the graphs, by graph: ``files``, their ``suffixes``, number
    of ``external`` data files by file name, ``reports``; layers that stayed in float; and SHA-256 by
    file."""

    files: dict[Role, str] = field(default_factory=dict)
    suffixes: dict[Role, str] = field(default_factory=dict)
    external: dict[str, int] = field(default_factory=dict)
    reports: dict[Role, GraphReport] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def in_order(self) -> Written:
        """The same, sorted: which thread was first must not show in the bundle."""
        return Written(*(dict(sorted(getattr(self, entry.name).items())) for entry in fields(self)))


def write_graphs(
    checkpoint: Checkpoint,
    settings: Onnx,
    graphs: FloatGraphs,
    image_token: int,
    int8: Int8 | None,
    folder: Path,
    console: Console,
    rounding: Rounding = NEAREST,
) -> Written:
    """Write all graphs of a bundle.

    Args:
        image_token: id of ``<image>``.
        int8: needed where a part is int8; it has decided about these graphs.
        rounding: of an int4 decoder.

    Raises:
        ParityFailed: a traced graph is not the float model.
        Unsupported: a component cannot be traced.
        CheckpointError: a weight is missing or not finite.
    """
    totals = {LABELS[name]: size for name, size in sizes(checkpoint, settings).items()}
    with console.bars(totals) as bars:
        writer, fused = _Writer(checkpoint, settings, graphs, int8, folder, bars), settings.fused_decoder
        with SILENT, ThreadPoolExecutor(2) as pool, writer.stopping():
            # Tracing holds the interpreter; what else there is to do mostly does not, and runs beside it.
            beside = [pool.submit(writer.fused_decoder, rounding)] if fused else []
            graphs.trace()
            tower = pool.submit(writer.tower)
            graphs.compare()
            writer.embedding(image_token)
            tower.result()
            writer.projector()
            for part in beside:
                part.result()
            if not fused:
                writer.decoder()
    return writer.written.in_order()


def write_vision(
    checkpoint: Checkpoint, settings: Onnx, graphs: FloatGraphs, int8: Int8 | None, folder: Path, console: Console
) -> Written:
    """Write the tower with its projector, and the projector alone; arguments and errors as ``write_graphs``."""
    totals = {LABELS[name]: size for name, size in vision_sizes(checkpoint, settings).items()}
    with console.bars(totals) as bars:
        writer = _Writer(checkpoint, settings, graphs, int8, folder, bars)
        graphs.trace()
        graphs.compare()
        writer.tower()
        writer.projector()
    return writer.written.in_order()


class _Writer:
    def __init__(
        self, checkpoint: Checkpoint, settings: Onnx, graphs: FloatGraphs, int8: Int8 | None, folder: Path,
        bars: dict[str, Advance],
    ) -> None:  # fmt: skip
        self.checkpoint, self.settings, self.graphs, self.int8, self.folder = checkpoint, settings, graphs, int8, folder
        self.written = Written()
        self._bars, self._stop = bars, Event()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """An error or Ctrl-C within also ends what another thread is writing, after its next tensor."""
        try:
            yield
        except BaseException:
            self._stop.set()
            raise

    def tower(self) -> None:
        """Tower with projector."""
        self._finish("vision", self.settings.vision)

    def projector(self) -> None:
        """The projector alone."""
        self._finish("projector", self.settings.vision)

    def embedding(self, image_token: int) -> None:
        """Token embeddings and, for onnxruntime-genai, their merge with image features; both read one table."""
        table = plugins.token_table(self.checkpoint).torch()
        module = embedding.Embedding(table, max(table.shape[0], image_token + 1))
        alone = embedding.alone(module)
        self._save("embed_tokens", alone.model, "fp32")
        verify.check(alone, self._path("embed_tokens", ""))
        if not self.checkpoint.spec.language.generates:
            return
        merged = embedding.merged(module, image_token)
        share(merged.model, self._path("embedding", ""), self._path("embed_tokens", ""))
        self._save("embedding", merged.model, "fp32")
        verify.check(merged, self._path("embedding", ""))

    def decoder(self) -> None:
        """The language model over embeddings and its cache."""
        self._finish("language", self.settings.decoder)

    def fused_decoder(self, rounding: Rounding) -> None:
        """The same with int4 or float16 weights, in ONNX Runtime's own operators."""
        settings = self.settings
        int4 = fused_decoder.Weights(settings.block, head_bits=settings.head_bits)
        held = fused_decoder.HALF if settings.decoder == "fp16" else int4
        self._save_decoder(fused_decoder.build(self.checkpoint, held, rounding), settings.decoder)

    def _finish(self, part: str, precision: str) -> None:
        """Quantize, fuse, save."""
        traced, spec = self.graphs.part(part), self.checkpoint.spec
        report = GraphReport(precision=precision, nodes=0, onnxsim=traced.simplified or None)
        if precision == "int8" and self.int8 is not None:
            report.nodes_float = _count(traced.model)
            coverage, done = self.int8.apply(traced.model, self.int8.decisions[part])
            report.two_terms, report.pair_max = coverage.twice, coverage.pair_max
            report.smoothed, report.bias_corrected = done["smoothed"], done["bias_corrected"]
            report.scheme, report.int8_share = self.int8.scheme.name, round(coverage.share, 6)
            self.written.float_layers |= _float_layers(coverage)
        if part == "vision" and self.settings.fuse:
            report.fused = fuse(traced.model)
        if part == "language" and spec.language.generates:
            self._save_decoder(traced.model, precision, report)
        else:
            self._save(_GRAPHS[part], traced.model, precision, report)

    def _save_decoder(self, model: ir.Model, precision: str, report: GraphReport | None = None) -> None:
        """With its weights outside, and again over these weights as onnxruntime-genai runs it."""
        name: Role = "decoder_model_merged"
        alone: Role = "decoder"
        self._save(name, model, precision, report, outside=0)
        kept_rows.last_alone(model)
        share(model, *(self._path(graph, _SUFFIXES[precision]) for graph in (alone, name)))
        self._save(alone, model, precision)

    def _save(
        self, name: Role, model: ir.Model, precision: str, report: GraphReport | None = None,
        outside: int | None = None,
    ) -> None:  # fmt: skip
        path = self._path(name, _SUFFIXES[precision])
        external = save(model, path, self._advance(LABELS[name]), outside)
        written = self.written
        written.files[name] = path.relative_to(self.folder).as_posix()
        written.suffixes[name] = _SUFFIXES[precision]
        written.reports[name] = report or GraphReport(precision=precision, nodes=0)
        written.reports[name].nodes = _count(model)
        if external:
            written.external[path.name] = external
        # Here and not at the end, so that both threads hash.
        written.hashes |= {
            file.relative_to(self.folder).as_posix(): sha256(file) for file in path.parent.glob(f"{path.name}*")
        }

    def _advance(self, component: str) -> Advance:
        bar = self._bars.get(component, no_advance)

        def advance(amount: int = 1, /) -> None:
            if self._stop.is_set():
                raise VlmExportError("stopped", "another part of the export failed")
            bar(amount)

        return advance

    def _path(self, name: Role, suffix: str) -> Path:
        return self.folder / f"{_FOLDERS[name]}{name}{suffix}.onnx"


def _float_layers(coverage: Coverage) -> dict[str, str]:
    return {path: f"float32 ({reason})" for path, (_, reason) in coverage.float32.items()}


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph)
