"""Write a hybrid bundle: vision encoder and projector as ONNX, the decoder as GGUF, joined by visual tokens.

It serves what an mmproj cannot hold, or what libmtmd would compute wrongly.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlmexport.artifact.bundle.manifest import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    staged,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.gguf import decoder as gguf_decoder
from vlmexport.artifact.gguf.decoder import LANGUAGE, Decoder
from vlmexport.artifact.gguf.export import JINJA, refuse_gguf, write_files
from vlmexport.artifact.onnx import client_files
from vlmexport.artifact.onnx.graphs import COMPONENT_OF, Written, write_vision
from vlmexport.artifact.onnx.sizes import vision_sizes
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.calibrate.sensitivity import Sensitivity
from vlmexport.calibrate.statistics import Statistics
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.quantize.int8 import Fallback, Int8
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

PREPROCESSOR = "preprocessor_config.json"
_JOINED = (
    "image_features of the vision encoder go into llama.cpp as embeddings (llama_batch.embd), between the tokens "
    "before and those after the image; no mmproj is needed"
)


def export_hybrid(
    checkpoint: Checkpoint,
    recipe: Recipe,
    statistics: Statistics | None,
    destination: Path,
    *,
    force: bool,
    console: Console,
    sensitivity: Sensitivity | None = None,
    fallback: Fallback | None = None,
) -> Manifest:
    """Export a checkpoint to a folder with ``onnx/vision_encoder*.onnx``, ``components/projector*.onnx``,
    ``<name>-<TYPE>.gguf``, what preprocesses images and, where it was used, ``imatrix.gguf``.

    Args:
        statistics: of a calibration pass; needed for int8 vision, and for an importance matrix that is ``auto``.
        force: replace a bundle that is there.
        sensitivity: of the same samples; needed where a budget is set.
        fallback: sends layers of the vision encoder that int8 does not serve back to float.

    Raises:
        ParityFailed: a traced graph is not the float model; nothing is written.
        Unsupported: GGUF cannot hold the decoder, or the vision encoder cannot be traced.
        UsageError: the destination exists, or there are no statistics to quantize with.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    refuse_gguf(checkpoint, recipe)
    if statistics is None and recipe.onnx.vision == "int8":
        raise UsageError("int8 vision needs calibration statistics", "calibrate first, or pass --vision onnx-fp32")
    decoder = gguf_decoder.build(checkpoint, recipe, statistics, sensitivity, console)
    files = decoder.files
    int8 = Int8(recipe.onnx, statistics, fallback) if statistics is not None else None
    needed = sum(file.size for file in files.values()) + sum(vision_sizes(checkpoint, recipe.onnx).values())
    with staged(destination, force, needed) as folder:
        written = write_vision(checkpoint, recipe.onnx, int8, folder, console)
        hashes = written.hashes | write_files(files, folder, console)
        document = json.dumps(client_files.preprocessor(checkpoint.spec), indent=2, ensure_ascii=False) + "\n"
        (folder / PREPROCESSOR).write_text(document, encoding="utf-8", newline="\n")
        components = {file.name: component for component, file in files.items()}
        components |= {file: COMPONENT_OF[name] for name, file in written.files.items()}
        manifest = Manifest(
            kind="hybrid",
            source=source_of(checkpoint),
            recipe=recipe,
            tools=tool_versions("gguf", "llama-cpp-python", "torch", "transformers", "onnx", "onnx-ir", "onnxscript",
                                "onnxruntime", "onnxsim", "numpy"),
            calibration=calibration_of(statistics),
            files=list_files(folder, components, hashes),
            tensors=decoder.unlike() | written.float_layers,
            notes=[JINJA, _JOINED],
            details=_details(checkpoint, recipe, decoder, written),
        )  # fmt: skip
        write_manifest(folder, manifest)
    return manifest


def _details(checkpoint: Checkpoint, recipe: Recipe, decoder: Decoder, written: Written) -> dict[str, object]:
    return {
        "language": decoder.files[LANGUAGE].name,
        "graphs": written.files,
        "features": trace.FEATURES,
        "types": {"language": decoder.types, "vision": recipe.onnx.vision},
        "opset": trace.OPSET,
        "report": written.report,
    } | decoder.details()
