"""Write an ONNX bundle: each component traced, compared, quantized and saved, with what its clients need around it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from vlmexport.artifact.bundle.manifest import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.bundle.staging import staged
from vlmexport.artifact.onnx import client_files, tokenizer_file
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding
from vlmexport.artifact.onnx.graphs import COMPONENT_OF, write_graphs
from vlmexport.artifact.onnx.sizes import hessian_bytes, sizes
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.calibrate import calibration_samples
from vlmexport.calibrate.hessians import SAMPLES, measure
from vlmexport.calibrate.statistics import Statistics
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.model import load, plugins
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.quantize.int8 import Fallback, Int8
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

TOKENIZER = "tokenizer.json"


def export_onnx(
    checkpoint: Checkpoint,
    recipe: Recipe,
    statistics: Statistics | None,
    destination: Path,
    *,
    force: bool,
    console: Console,
    fallback: Fallback | None = None,
) -> Manifest:
    """Export a checkpoint to a folder that onnxruntime, onnxruntime-genai and transformers.js load.

    Args:
        statistics: of a calibration pass; needed where a part is int8, or int4 with scales that are searched.
        force: replace a bundle that is there.
        fallback: sends layers that int8 does not serve back to float.

    Returns:
        the manifest that was written.

    Raises:
        ParityFailed: a traced graph is not the float model; nothing is written.
        Unsupported: a component cannot be traced, or the clients' files cannot hold the model.
        UsageError: the destination exists, or there are no statistics to quantize with.
    """
    settings = recipe.onnx
    if statistics is None and recipe.needs_statistics:
        raise UsageError("this recipe needs calibration statistics", "calibrate first, or pass --precision fp32")
    tokenizer = tokenizer_file.content(checkpoint)
    image_token = tokenizer_file.image_token_id(checkpoint)
    int8 = Int8(settings, statistics, fallback) if statistics is not None else None
    needed = sum(sizes(checkpoint, settings).values()) + (
        hessian_bytes(checkpoint.spec.language) if recipe.uses_gptq else 0
    )
    with staged(destination, force, needed) as folder, ThreadPoolExecutor(1) as pool:
        source = pool.submit(source_of, checkpoint)
        with TemporaryDirectory(dir=folder) as scratch:
            rounding = _rounding(checkpoint, recipe, statistics, Path(scratch), console)
            written = write_graphs(checkpoint, image_token, settings, int8, folder, console, rounding)
        layout = client_files.Layout(
            checkpoint.spec, image_token, plugins.projector(checkpoint.spec.projector).num_tokens(
                checkpoint.spec.projector), _special(checkpoint), written.suffixes, written.external,
            has_positions=not settings.fused_decoder,
        )  # fmt: skip
        for name, document in client_files.files(layout).items():
            _write(folder / name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        _write(folder / TOKENIZER, tokenizer)
        components = {file: COMPONENT_OF[name] for name, file in written.files.items()}
        manifest = Manifest(
            kind="onnx",
            source=source.result(),
            recipe=recipe,
            tools=tool_versions("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxsim"),
            calibration=calibration_of(statistics),
            files=list_files(folder, components, written.hashes),
            tensors=written.float_layers,
            details={
                # What we run; onnxruntime-genai's decoder is the same over the same weights.
                "graphs": {name: file for name, file in written.files.items() if name != "decoder"},
                "features": trace.FEATURES,
                "image_token_id": image_token,
                "tokenizer": TOKENIZER,
                "opset": trace.OPSET,
                "report": written.report,
            },
        )
        write_manifest(folder, manifest)
    return manifest


def _rounding(
    checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics | None, folder: Path, console: Console
) -> Rounding:
    """What an int4 decoder is rounded by. Hessians are too large to be kept, so they are measured within the export."""
    settings = recipe.calibration
    if recipe.uses_gptq:
        samples = calibration_samples(settings.samples)[:SAMPLES]
        with console.progress("measuring for GPTQ", len(samples) + checkpoint.spec.language.num_layers) as advance:
            vlm, tokenizer = load(checkpoint), checkpoint.tokenizer
            return Rounding(hessians=measure(vlm, tokenizer, samples, folder, settings.image_weight, advance))
    if recipe.onnx.rounding == "search" and statistics is not None:
        layers = statistics.only(("language",)).layers
        return Rounding({p: layer.importance(settings.image_weight).astype("f4") for p, layer in layers.items()})
    return NEAREST


def _special(checkpoint: Checkpoint) -> dict[str, str]:
    tokenizer, spec = checkpoint.tokenizer, checkpoint.spec
    texts = tokenizer.texts()
    ids: dict[str, int | None] = {"eos_token": spec.eos_token_id, "pad_token": spec.pad_token_id}
    if tokenizer.bos_token_id is not None:
        ids = {"bos_token": spec.bos_token_id, **ids}
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids["unk_token"] = tokenizer.unknown_token_id
    found = {name: texts[i] for name, i in ids.items() if i in texts}
    return {"pad_token": found["eos_token"], **found}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
