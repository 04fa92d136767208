"""Write a GGUF bundle: the language model, its mmproj and the importance matrix, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle.contents import calibration_of, list_files, source_of, tool_versions
from vlmexport.artifact.bundle.halves import LABELS, LLAMA_CPP, Role, SeeingHalf
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.gguf import decoder as gguf_decoder
from vlmexport.artifact.gguf import mmproj
from vlmexport.artifact.gguf.decoder import LANGUAGE, MMPROJ, unlike
from vlmexport.artifact.gguf.file import GgufFile, library
from vlmexport.checkpoint.spec import Spec
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.quantize.ggml import library_path
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

JINJA = "llama.cpp needs --jinja: without it the built-in vicuna template is taken, which writes other line breaks"
_CLASS_TOKEN = (
    "stock libmtmd computes this tower wrong (llama.cpp #25814); vlmexport repairs that when it runs the bundle, other "
    "programs need the patch of docs/llama-cpp.md, or a hybrid (--vision onnx) in place of this bundle"
)
_PADDING = (122, 116, 104)
_OTHER_COLOUR = f"libmtmd pads with {_PADDING}, CLIP's mean, this model was trained with another: wide images differ"
_NOT_PADDED = "libmtmd pads images to a square, this model was trained on centre crops: wide images differ"


def bytes_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that a bundle takes; at most, where a budget is spent."""
    vision = mmproj.file(checkpoint, recipe.gguf.mmproj_type).size
    return gguf_decoder.bytes_needed(checkpoint, recipe) + vision


def export_gguf(checkpoint: Checkpoint, recipe: Recipe, measured: Measured, folder: Path, console: Console) -> Manifest:
    """Write ``<name>-<TYPE>.gguf``, ``mmproj-<name>-<TYPE>.gguf``, the manifest and, where it was used,
    ``imatrix.gguf``, to an empty folder.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model.
        UsageError: the type is unknown, or a budget is too small.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    settings, vision = recipe.gguf, mmproj.file(checkpoint, recipe.gguf.mmproj_type)
    decoder = gguf_decoder.build(checkpoint, recipe, measured, console)
    files = {LANGUAGE: decoder.files[LANGUAGE], MMPROJ: vision} | decoder.files
    hashes = write_files(files, folder, console)
    manifest = Manifest(
        source=source_of(checkpoint),
        recipe=recipe,
        tools=tool_versions("gguf", "llama-cpp-python", "torch", "numpy"),
        calibration=calibration_of(measured.statistics) if settings.imatrix == "auto" else None,
        files=list_files(folder, {file.name: role for role, file in files.items()}, hashes),
        tensors=decoder.unlike() | unlike(vision, settings.mmproj_type),
        notes=_notes(checkpoint.spec),
        seeing=SeeingHalf(engine=LLAMA_CPP, precision=settings.mmproj_type, files={MMPROJ: vision.name}),
        decoding=decoder.half(),
    )
    write_manifest(folder, manifest)
    return manifest


def write_files(files: dict[Role, GgufFile], folder: Path, console: Console) -> dict[str, str]:
    """Write role → file; file name → SHA-256 is returned."""
    hashes = {}
    for role, file in files.items():
        with console.progress(f"{LABELS[role]}: {file.name}", file.size, "bytes") as advance:
            hashes[file.name] = file.write(folder, advance)
    return hashes


def refuse_gguf(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Say at once what cannot work, before anything long begins. What libmtmd cannot hold, a hybrid can.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model.
        UsageError: a type is unknown, does not fit, or needs an importance matrix; a file of one is of no use; a
            budget is too small.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    language = checkpoint.spec.language
    plugins.language(language).gguf(language)  # first: a hybrid is no cure for it
    library()
    library_path("ggml-base")
    if recipe.gguf.vision == "mmproj":
        mmproj.projector_of(checkpoint.spec)
    gguf_decoder.refuse(checkpoint, recipe)


def _notes(spec: Spec) -> list[str]:
    notes = [JINJA, _CLASS_TOKEN]
    if not spec.image_processor.do_pad:
        return [*notes, _NOT_PADDED]
    return notes if spec.image_processor.background == _PADDING else [*notes, _OTHER_COLOUR]
