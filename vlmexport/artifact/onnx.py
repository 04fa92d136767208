"""Write an ONNX bundle: each component traced, compared, quantized and saved, with what its clients need around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from vlmexport.artifact import onnx_layout, tokenizer_json, trace, verify
from vlmexport.artifact.bundle import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    staged,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.graph import halve_tables, save
from vlmexport.artifact.int8 import Int8
from vlmexport.calibrate.statistics import Statistics
from vlmexport.checkpoint import Checkpoint
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.model import VLM, load, plugins
from vlmexport.quantize.static_int8 import Coverage
from vlmexport.recipe import Recipe

TOKENIZER = "tokenizer.json"
_FOLDERS = {
    "vision_encoder": "onnx/", "embed_tokens": "onnx/", "decoder_model_merged": "onnx/", "projector": "components/",
    "embedding": "",
}  # fmt: skip
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
    vlm = load(checkpoint)
    image_token = tokenizer_json.image_token_id(checkpoint)
    int8 = Int8(settings, statistics) if statistics is not None else None
    with staged(destination, force) as folder:
        written = _graphs(vlm, image_token, settings, int8, folder, console)
        layout = onnx_layout.Layout(
            checkpoint.spec, image_token, plugins.projector(checkpoint.spec.projector).num_tokens(
                checkpoint.spec.projector), _special(checkpoint), written.suffixes, written.external,
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


def _graphs(vlm: VLM, image_token: int, settings: Any, int8: Int8 | None, folder: Path, console: Console) -> _Written:
    rows = max(vlm.spec.language.vocab_size, image_token + 1)
    steps: list[tuple[Callable[[], trace.Traced], str]] = [
        (lambda: trace.trace_vision(vlm), settings.vision),
        (lambda: trace.trace_projector(vlm), settings.vision),
        (lambda: trace.trace_embedding(vlm, rows), "fp32"),
        (lambda: trace.trace_merge(vlm, rows, image_token), "fp32"),
        (lambda: trace.trace_decoder(vlm), settings.decoder),
    ]
    written = _Written()
    with console.progress("tracing, comparing and quantizing", len(steps)) as advance:
        for make, precision in steps:
            _graph(vlm, make(), precision, int8, folder, written)
            advance()
    return written


def _graph(vlm: VLM, traced: trace.Traced, precision: str, int8: Int8 | None, folder: Path, written: _Written) -> None:
    """Compare the float graph, quantize it where it is to be int8, save it."""
    suffix = "_int8" if precision == "int8" else ""
    file = f"{_FOLDERS[traced.name]}{traced.name}{suffix}.onnx"
    path = folder / file
    report: dict[str, Any] = {"precision": precision, "float_tolerance": verify.TOLERANCE}
    if precision == "fp32" and traced.name in ("embed_tokens", "embedding"):
        halve_tables(traced.model)
    external = save(traced.model, path)
    verify.check(traced, path)
    if traced.name == "decoder_model_merged":
        verify.check_cache(vlm, path)
    report["nodes"] = _count(traced.model)
    if precision == "int8" and int8 is not None:
        coverage = int8.quantize(traced.model)
        external = save(traced.model, path)
        report |= {"scheme": int8.scheme.name, "int8_share": round(coverage.share, 6)}
        report |= {"nodes_int8": _count(traced.model), "two_terms": coverage.twice, "smoothed": int8.smoothed}
        written.float_layers |= _float_layers(coverage)
    written.files[traced.name] = file
    written.suffixes[traced.name] = suffix
    written.graphs[traced.name] = report
    if external:
        written.external[path.name] = external


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
