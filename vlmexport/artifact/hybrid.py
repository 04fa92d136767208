"""Write a hybrid bundle: vision encoder and projector as ONNX, the decoder as GGUF, joined by visual tokens.

It serves what an mmproj cannot hold, or what libmtmd would compute wrongly.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlmexport.artifact.bundle.contents import calibration_of, list_files, source_of, tool_versions
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.gguf import decoder as gguf_decoder
from vlmexport.artifact.gguf.export import JINJA, write_files
from vlmexport.artifact.onnx import client_files
from vlmexport.artifact.onnx.export import seeing_half
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.graphs import write_vision
from vlmexport.artifact.onnx.sizes import vision_sizes
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

PREPROCESSOR = "preprocessor_config.json"
_JOINED = (
    "image_features of the vision encoder go into llama.cpp as embeddings (llama_batch.embd), between the tokens "
    "before and those after the image; no mmproj is needed"
)


def bytes_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that a bundle takes; at most, where a budget is spent."""
    vision = sum(vision_sizes(checkpoint, recipe.onnx).values())
    return gguf_decoder.bytes_needed(checkpoint, recipe) + vision


def export_hybrid(
    checkpoint: Checkpoint, recipe: Recipe, graphs: FloatGraphs, measured: Measured, folder: Path, console: Console
) -> Manifest:
    """Write ``onnx/vision_encoder*.onnx``, ``components/projector*.onnx``, ``<name>-<TYPE>.gguf``, what preprocesses
    images, the manifest and, where it was used, ``imatrix.gguf``, to an empty folder.

    Raises:
        ParityFailed: a traced graph is not the float model.
        Unsupported: GGUF cannot hold the decoder, or the vision encoder cannot be traced.
        UsageError: the type is unknown, or a budget is too small.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    decoder = gguf_decoder.build(checkpoint, recipe, measured, console)
    files = decoder.files
    written = write_vision(checkpoint, recipe.onnx, graphs, measured.int8, folder, console)
    hashes = written.hashes | write_files(files, folder, console)
    document = json.dumps(client_files.preprocessor(checkpoint.spec), indent=2, ensure_ascii=False) + "\n"
    (folder / PREPROCESSOR).write_text(document, encoding="utf-8", newline="\n")
    roles = {file.name: role for role, file in files.items()}
    roles |= {file: role for role, file in written.files.items()}
    manifest = Manifest(
        source=source_of(checkpoint),
        recipe=recipe,
        tools=tool_versions("gguf", "llama-cpp-python", "torch", "transformers", "onnx", "onnx-ir", "onnxscript",
                            "onnxruntime", "onnxsim", "numpy"),
        calibration=calibration_of(measured.statistics),
        files=list_files(folder, roles, hashes),
        tensors=decoder.unlike() | written.float_layers,
        notes=[JINJA, _JOINED],
        seeing=seeing_half(recipe.onnx, written),
        decoding=decoder.half(),
    )  # fmt: skip
    write_manifest(folder, manifest)
    return manifest
