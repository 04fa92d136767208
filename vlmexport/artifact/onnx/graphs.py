"""The graphs of an ONNX bundle: each made, compared with the float model, quantized where it is to be, and saved.

What is traced is a sketch of the model, with few layers and random weights, and is compared with PyTorch as such. Then
its layers are repeated, and the checkpoint's weights take the place of the random ones; they are read when they are
written.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock
from typing import Any

import onnx_ir as ir

from vlmexport.artifact.bundle.manifest import sha256
from vlmexport.artifact.onnx.build import embedding, fused_decoder
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding
from vlmexport.artifact.onnx.passes import attach_weights, fold_batch_norm, kept_rows, repeat_layers
from vlmexport.artifact.onnx.passes.clean import save, share
from vlmexport.artifact.onnx.passes.fuse_attention import fuse
from vlmexport.artifact.onnx.sizes import sizes, vision_sizes
from vlmexport.artifact.onnx.trace import compare as verify
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.artifact.onnx.trace.cache import Part, Traces, pack, unpack
from vlmexport.artifact.onnx.trace.components import Traced
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.artifact.onnx.trace.simplify import simplify
from vlmexport.console import Advance, Console, no_advance
from vlmexport.errors import VlmExportError
from vlmexport.model import plugins
from vlmexport.model.sketch import cut, prefix, sketch
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.static_int8 import Coverage
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint

COMPONENT_OF = {
    "vision_encoder": "vision+projector", "embed_tokens": "embedding", "decoder_model_merged": "decoder",
    "projector": "projector (for parity)", "embedding": "embedding (for onnxruntime-genai)",
    "decoder": "decoder (for onnxruntime-genai)",
}  # fmt: skip
_FOLDERS = {
    "vision_encoder": "onnx/", "embed_tokens": "onnx/", "decoder_model_merged": "onnx/", "projector": "components/",
    "embedding": "", "decoder": "",
}  # fmt: skip
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "int4": "_q4"}


@dataclass
class Written:
    """What the manifest and the clients' files say about the graphs, by graph: ``files``, their ``suffixes``, number
    of ``external`` data files by file name, a report; layers that stayed in float; and SHA-256 by
    file."""

    files: dict[str, str] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)
    external: dict[str, int] = field(default_factory=dict)
    report: dict[str, dict[str, Any]] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def in_order(self) -> Written:
        """The same, sorted: which thread was first must not show in the bundle."""
        return Written(*(dict(sorted(getattr(self, entry.name).items())) for entry in fields(self)))


def write_graphs(
    checkpoint: Checkpoint,
    image_token: int,
    settings: Onnx,
    int8: Int8 | None,
    folder: Path,
    console: Console,
    rounding: Rounding = NEAREST,
) -> Written:
    """Write all graphs of a bundle.

    Args:
        image_token: id of ``<image>``.
        int8: needed where a part is int8.
        rounding: of an int4 decoder.

    Raises:
        ParityFailed: a traced graph is not the float model.
        Unsupported: a component cannot be traced.
        CheckpointError: a weight is missing or not finite.
    """
    totals = {COMPONENT_OF[name]: size for name, size in sizes(checkpoint, settings).items()}
    with console.bars(totals) as bars:
        graphs = _Graphs(checkpoint, settings, int8, folder, bars)
        fused = settings.fused_decoder
        with TemporaryDirectory(dir=folder) as scratch, SILENT, ThreadPoolExecutor(2) as pool, graphs.stopping():
            # Tracing holds the interpreter; what else there is to do mostly does not, and runs beside it.
            beside = [pool.submit(graphs.fused_decoder, rounding)] if fused else []
            graphs.trace_parts(("vision", "projector") if fused else COMPONENTS, Path(scratch))
            tower = pool.submit(graphs.tower)
            graphs.compare()
            graphs.embedding(image_token)
            tower.result()
            graphs.projector()
            for part in beside:
                part.result()
            if not fused:
                graphs.decoder()
    return graphs.written.in_order()


def write_vision(checkpoint: Checkpoint, settings: Onnx, int8: Int8 | None, folder: Path, console: Console) -> Written:
    """Write the tower with its projector, and the projector alone; errors as ``write_graphs``."""
    totals = {COMPONENT_OF[name]: size for name, size in vision_sizes(checkpoint, settings).items()}
    with console.bars(totals) as bars, TemporaryDirectory(dir=folder) as scratch:
        graphs = _Graphs(checkpoint, settings, int8, folder, bars)
        graphs.trace_parts(("vision", "projector"), Path(scratch))
        graphs.compare()
        graphs.tower()
        graphs.projector()
    return graphs.written.in_order()


class _Graphs:
    def __init__(
        self, checkpoint: Checkpoint, settings: Onnx, int8: Int8 | None, folder: Path, bars: dict[str, Advance]
    ) -> None:
        self.checkpoint, self.settings, self.int8, self.folder = checkpoint, settings, int8, folder
        self.written = Written()
        self._bars, self._stop, self._quantizing = bars, Event(), Lock()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """An error or Ctrl-C within also ends what another thread is writing, after its next tensor."""
        try:
            yield
        except BaseException:
            self._stop.set()
            raise

    def trace_parts(self, components: tuple[str, ...], scratch: Path) -> None:
        """The graphs of a sketch of the components: those that are kept, and the others traced.

        These are saved in ``scratch`` with their weights, for ``compare``.
        """
        spec = self.checkpoint.spec
        self._kept = Traces(cut(spec, repeat_layers.TRACED), self.settings.simplify)
        found = {name: self._kept.find(name) for name in components}
        missing = tuple(name for name, part in found.items() if part is None)
        self._traced: dict[str, tuple[Traced, Path, bytes]] = {}
        if missing:
            self._sketch = sketch(spec, repeat_layers.TRACED, components)
        for name in missing:
            self._traced[name] = self._trace(name, scratch)
        # What was traced goes on as it would be read from the cache, so both ways give the same bytes.
        self._parts = {name: part or unpack(self._traced[name][2]) for name, part in found.items()}

    def _trace(self, part: str, scratch: Path) -> tuple[Traced, Path, bytes]:
        traced, report = trace.PARTS[part](self._sketch), None
        if self.settings.simplify:
            traced, report = simplify(traced, scratch, self._stack(part))
        path = scratch / f"{part}.onnx"
        save(traced.model, path)
        transposed = attach_weights.orientations(traced.model, dict(self._sketch.state_dict()))
        return traced, path, pack(Part(traced.name, traced.model, transposed, report))

    def _stack(self, part: str) -> str | None:
        """What comes before a layer's number in module paths, where a part has more layers than are traced."""
        spec = self.checkpoint.spec
        total = {"vision": spec.vision.used_layers, "language": spec.language.num_layers}.get(part, 0)
        return prefix(spec, part) if total > repeat_layers.TRACED else None

    def compare(self) -> None:
        """The graphs that were traced now with what they were traced from; then they are kept."""
        for name, (traced, path, packed) in self._traced.items():
            verify.check(traced, path)
            if name == "language":
                verify.check_cache(self._sketch, path)
            self._kept.keep(name, packed)

    def tower(self) -> None:
        """Tower with projector."""
        spec = self.checkpoint.spec.vision
        stack = plugins.vision(spec).layers(spec) is not None
        self._finish("vision", self.settings.vision, spec.used_layers if stack else 0)

    def projector(self) -> None:
        """The projector alone."""
        self._finish("projector", self.settings.vision)

    def embedding(self, image_token: int) -> None:
        """Token embeddings and, for onnxruntime-genai, their merge with image features; both read one table."""
        table = plugins.token_table(self.checkpoint).torch()
        module = embedding.Embedding(table, max(table.shape[0], image_token + 1))
        alone = embedding.alone(module)
        self._save(alone.name, alone.model, "fp32")
        verify.check(alone, self._path(alone.name, ""))
        if not self.checkpoint.spec.language.generates:
            return
        merged = embedding.merged(module, image_token)
        share(merged.model, self._path(merged.name, ""), self._path(alone.name, ""))
        self._save(merged.name, merged.model, "fp32")
        verify.check(merged, self._path(merged.name, ""))

    def decoder(self) -> None:
        """The language model over embeddings and its cache."""
        spec = self.checkpoint.spec.language
        if spec.generates:  # a sketch has few tokens, and all classes
            trace.name_logits(self._parts["language"].model, spec.vocab_size)
        self._finish("language", self.settings.decoder, spec.num_layers)

    def fused_decoder(self, rounding: Rounding) -> None:
        """The same with int4 or float16 weights, in ONNX Runtime's own operators."""
        settings = self.settings
        int4 = fused_decoder.Weights(settings.block, head_bits=settings.head_bits)
        held = fused_decoder.HALF if settings.decoder == "fp16" else int4
        self._save_decoder(fused_decoder.build(self.checkpoint, held, rounding), settings.decoder, {})

    def _finish(self, part: str, precision: str, count: int = 0) -> None:
        """Put in the checkpoint's weights and all ``count`` layers of a stack, quantize, save."""
        traced, spec = self._parts[part], self.checkpoint.spec
        attach_weights.attach(traced.model, traced.transposed, self.checkpoint)
        if count:
            repeat_layers.repeat(traced.model, prefix(spec, part), count, attach_weights.next_layer(self.checkpoint))
        fold_batch_norm.fold(traced.model)
        report: dict[str, Any] = {"onnxsim": traced.simplified} if traced.simplified else {}
        if precision == "int8" and self.int8 is not None:
            report |= {"nodes_float": _count(traced.model)}
            with self._quantizing:
                decisions = self.int8.decide(traced.model)
                if part != "projector":  # the tower's graph holds it too
                    self.int8.measure(decisions)
                coverage, done = self.int8.apply(traced.model, decisions)
                report |= {"two_terms": coverage.twice, "pair_max": coverage.pair_max, **done}
            report |= {"scheme": self.int8.scheme.name, "int8_share": round(coverage.share, 6)}
            self.written.float_layers |= _float_layers(coverage)
        if part == "vision" and self.settings.fuse:
            report["fused"] = fuse(traced.model)
        if part == "language" and spec.language.generates:
            self._save_decoder(traced.model, precision, report)
        else:
            self._save(traced.name, traced.model, precision, report)

    def _save_decoder(self, model: ir.Model, precision: str, report: dict[str, Any]) -> None:
        """With its weights outside, and again over these weights as onnxruntime-genai runs it."""
        name, alone = "decoder_model_merged", "decoder"
        self._save(name, model, precision, report, outside=0)
        kept_rows.last_alone(model)
        share(model, *(self._path(graph, _SUFFIXES[precision]) for graph in (alone, name)))
        self._save(alone, model, precision)

    def _save(
        self, name: str, model: ir.Model, precision: str, report: dict[str, Any] | None = None,
        outside: int | None = None,
    ) -> None:  # fmt: skip
        path = self._path(name, _SUFFIXES[precision])
        external = save(model, path, self._advance(COMPONENT_OF[name]), outside)
        written = self.written
        written.files[name] = path.relative_to(self.folder).as_posix()
        written.suffixes[name] = _SUFFIXES[precision]
        written.report[name] = {"precision": precision, "nodes": _count(model)} | (report or {})
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

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{_FOLDERS[name]}{name}{suffix}.onnx"


def _float_layers(coverage: Coverage) -> dict[str, str]:
    return {path: f"float32 ({reason})" for path, (_, reason) in coverage.float32.items()}


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph)
