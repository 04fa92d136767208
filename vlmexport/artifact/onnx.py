"""Write an ONNX bundle: each component traced, compared, quantized and saved, with what its clients need around it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
import torch

from vlmexport.artifact import embedding, fused_decoder, layers, onnx_layout, tokenizer_json, trace, verify, weights
from vlmexport.artifact.bundle import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    staged,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.graph import save, share
from vlmexport.artifact.int8 import Int8
from vlmexport.calibrate.statistics import Statistics
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.layout import COMPONENTS
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.model import plugins
from vlmexport.model.sketch import prefix, sketch
from vlmexport.quantize.static_int8 import Coverage
from vlmexport.recipe import Onnx, Recipe

TOKENIZER = "tokenizer.json"
_FOLDERS = {
    "vision_encoder": "onnx/", "embed_tokens": "onnx/", "decoder_model_merged": "onnx/", "projector": "components/",
    "embedding": "",
}  # fmt: skip
_SUFFIXES = {"fp32": "", "int8": "_int8", "int4": "_q4"}
_COMPONENTS = {
    "vision_encoder": "vision+projector", "embed_tokens": "embedding", "decoder_model_merged": "decoder",
    "projector": "projector (for parity)", "embedding": "embedding (for onnxruntime-genai)",
}  # fmt: skip


@dataclass
class _Written:
    """What the manifest says about the graphs."""

    files: dict[str, str] = field(default_factory=dict)
    suffixes: dict[str, str] = field(default_factory=dict)
    external: dict[str, int] = field(default_factory=dict)
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    float_layers: dict[str, str] = field(default_factory=dict)


def export_onnx(
    checkpoint: Checkpoint,
    recipe: Recipe,
    statistics: Statistics | None,
    destination: Path,
    *,
    force: bool,
    console: Console,
) -> Manifest:
    """Export a checkpoint to a folder that onnxruntime, onnxruntime-genai and transformers.js load.

    Args:
        statistics: of a calibration pass; needed where a part is int8.
        force: replace a bundle that is there.

    Returns:
        the manifest that was written.

    Raises:
        ParityFailed: a traced graph is not the float model; nothing is written.
        Unsupported: a component cannot be traced, or the clients' files cannot hold the model.
        UsageError: the destination exists, or there are no statistics to quantize with.
    """
    settings = recipe.onnx
    if statistics is None and "int8" in (settings.vision, settings.decoder):
        raise UsageError("int8 needs calibration statistics", "calibrate first, or pass --precision fp32")
    tokenizer = tokenizer_json.build(checkpoint)
    image_token = tokenizer_json.image_token_id(checkpoint)
    int8 = Int8(settings, statistics) if statistics is not None else None
    with staged(destination, force) as folder:
        written = _graphs(checkpoint, image_token, settings, int8, folder, console)
        layout = onnx_layout.Layout(
            checkpoint.spec, image_token, plugins.projector(checkpoint.spec.projector).num_tokens(
                checkpoint.spec.projector), _special(checkpoint), written.suffixes, written.external,
            has_positions=settings.decoder != "int4",
        )  # fmt: skip
        for name, document in onnx_layout.files(layout).items():
            _write(folder / name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        _write(folder / TOKENIZER, tokenizer.to_str(pretty=True) + "\n")
        components = {file: _COMPONENTS[name] for name, file in written.files.items()}
        manifest = Manifest(
            kind="onnx",
            source=source_of(checkpoint),
            recipe=recipe,
            tools=tool_versions("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime"),
            calibration=calibration_of(statistics),
            files=list_files(folder, components),
            tensors=written.float_layers,
            details={
                "graphs": written.files,
                "features": trace.FEATURES,
                "image_token_id": image_token,
                "tokenizer": TOKENIZER,
                "prompt": asdict(checkpoint.spec.prompt),
                "opset": trace.OPSET,
                "report": written.graphs,
            },
        )
        write_manifest(folder, manifest)
    return manifest


class _Graphs:
    """The graphs of one export, each made, compared with the float model, quantized and saved.

    What is traced is a sketch of the model, with few layers and random weights, and is compared with PyTorch as such.
    Then its layers are repeated, and the checkpoint's weights take the place of the random ones; they are read when
    they are written.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Onnx, int8: Int8 | None, folder: Path) -> None:
        self.checkpoint, self.settings, self.int8, self.folder = checkpoint, settings, int8, folder
        self.written = _Written()
        self._parameters: dict[str, torch.Tensor] = {}

    def sketch(self) -> None:
        """Make what is traced."""
        components = ("vision", "projector") if self.settings.decoder == "int4" else COMPONENTS
        self._sketch = sketch(self.checkpoint.spec, layers.TRACED, components)
        self._parameters = dict(self._sketch.state_dict())

    def vision(self) -> None:
        """Tower with projector, and the projector alone."""
        spec = self.checkpoint.spec.vision
        self._traced(trace.trace_vision(self._sketch), self.settings.vision, "vision", spec.used_layers)
        self._traced(trace.trace_projector(self._sketch), self.settings.vision)

    def embedding(self, image_token: int) -> None:
        """Token embeddings, and their merge with image features; both read one table."""
        table = self.checkpoint.tensors["language"]["model.embed_tokens.weight"].torch()
        module = embedding.Embedding(table, max(table.shape[0], image_token + 1))
        alone, merged = embedding.alone(module), embedding.merged(module, image_token)
        self._save(alone.name, alone.model, "fp32")
        share(merged.model, self._path(merged.name, ""), self._path(alone.name, ""))
        self._save(merged.name, merged.model, "fp32")
        for traced in (alone, merged):
            verify.check(traced, self._path(traced.name, ""))

    def decoder(self) -> None:
        """The language model over embeddings and its cache."""
        count = self.checkpoint.spec.language.num_layers
        self._traced(trace.trace_decoder(self._sketch), self.settings.decoder, "language", count)

    def fused_decoder(self) -> None:
        """The same with int4 weights, in ONNX Runtime's own operators."""
        held = fused_decoder.Weights(self.settings.block, head_bits=self.settings.head_bits)
        self._save("decoder_model_merged", fused_decoder.build(self.checkpoint, held), "int4")

    def _traced(self, traced: trace.Traced, precision: str, stack: str | None = None, count: int = 0) -> None:
        self._compared(traced)
        weights.attach(traced.model, self._parameters, self.checkpoint)
        if stack is not None:
            layers.repeat(traced.model, prefix(self.checkpoint.spec, stack), count, weights.next_layer(self.checkpoint))
        nodes = _count(traced.model)
        report: dict[str, Any] = {}
        if precision == "int8" and self.int8 is not None:
            coverage = self.int8.quantize(traced.model)
            report = {"scheme": self.int8.scheme.name, "int8_share": round(coverage.share, 6), "nodes_float": nodes}
            report |= {"two_terms": coverage.twice, "smoothed": self.int8.smoothed}
            self.written.float_layers |= _float_layers(coverage)
        self._save(traced.name, traced.model, precision, report)

    def _compared(self, traced: trace.Traced) -> None:
        with TemporaryDirectory(dir=self.folder) as scratch:
            path = Path(scratch) / "traced.onnx"
            save(traced.model, path)
            verify.check(traced, path)
            if traced.name == "decoder_model_merged":
                verify.check_cache(self._sketch, path)

    def _save(self, name: str, model: ir.Model, precision: str, report: dict[str, Any] | None = None) -> None:
        suffix = _SUFFIXES[precision]
        path = self._path(name, suffix)
        external = save(model, path)
        written = self.written
        written.files[name], written.suffixes[name] = path.relative_to(self.folder).as_posix(), suffix
        written.graphs[name] = {"precision": precision, "nodes": _count(model)} | (report or {})
        if external:
            written.external[path.name] = external

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"{_FOLDERS[name]}{name}{suffix}.onnx"


def _graphs(
    checkpoint: Checkpoint, image_token: int, settings: Onnx, int8: Int8 | None, folder: Path, console: Console
) -> _Written:
    graphs = _Graphs(checkpoint, settings, int8, folder)
    with console.progress("tracing, comparing and quantizing", 3) as advance, ThreadPoolExecutor(1) as pool:
        # Tracing keeps one processor busy; a fused decoder is not traced, and is quantized beside it.
        beside = pool.submit(graphs.fused_decoder) if settings.decoder == "int4" else None
        graphs.sketch()
        for step in (graphs.vision, lambda: graphs.embedding(image_token)):
            step()
            advance()
        if beside is None:
            graphs.decoder()
        else:
            beside.result()
        advance()
    return graphs.written


def _float_layers(coverage: Coverage) -> dict[str, str]:
    return {path: f"float32 ({reason})" for path, (_, reason) in coverage.float32.items()}


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph)


def _special(checkpoint: Checkpoint) -> dict[str, str]:
    pieces = checkpoint.tokenizer.pieces()
    spec = checkpoint.spec
    ids = {"bos_token": spec.bos_token_id, "eos_token": spec.eos_token_id, "pad_token": spec.pad_token_id}
    found = {name: pieces[i].text for name, i in ids.items() if i is not None and 0 <= i < len(pieces)}
    unknown = [piece.text for piece in pieces if piece.kind == "unknown"]
    return {"pad_token": found["eos_token"], **found, **({"unk_token": unknown[0]} if unknown else {})}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
