"""Write a GGUF bundle: the language model, its mmproj and the importance matrix, tensor by tensor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact import gguf_language, imatrix, mmproj
from vlmexport.artifact.bundle import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    staged,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.gguf_file import GgufFile, library
from vlmexport.artifact.imatrix import ImportanceMatrix
from vlmexport.checkpoint import Checkpoint, Spec
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import library_path
from vlmexport.quantize.gguf_mix import Mix, find_mix
from vlmexport.recipe import Gguf, Recipe

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics

IMATRIX = "imatrix.gguf"
LANGUAGE, VISION = "language", "vision+projector"
JINJA = "llama.cpp needs --jinja: without it the built-in vicuna template is taken, which writes other line breaks"
_CLASS_TOKEN = (
    "stock libmtmd computes this tower wrong (llama.cpp #25814); vlmexport repairs that when it runs the bundle, other "
    "programs need the patch of docs/llama-cpp.md, or a hybrid (--vision onnx) in place of this bundle"
)
_PADDING = (122, 116, 104)
_OTHER_COLOUR = f"libmtmd pads with {_PADDING}, CLIP's mean, this model was trained with another: wide images differ"
_NOT_PADDED = "libmtmd pads images to a square, this model was trained on centre crops: wide images differ"


def export_gguf(
    checkpoint: Checkpoint,
    recipe: Recipe,
    statistics: Statistics | None,
    destination: Path,
    *,
    force: bool,
    console: Console,
) -> Manifest:
    """Export a checkpoint to a folder with ``<name>-<TYPE>.gguf``, ``mmproj-<name>-<TYPE>.gguf`` and, where it was
    used, ``imatrix.gguf``.

    Args:
        statistics: of a calibration pass; needed where ``recipe.gguf.imatrix`` is ``auto`` and the type uses it.
        force: replace a bundle that is there.

    Returns:
        the manifest that was written.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model; nothing is written.
        UsageError: the destination exists, the type is unknown, or there is no importance matrix to take.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    refuse_gguf(checkpoint, recipe)
    settings, spec = recipe.gguf, checkpoint.spec
    mix = find_mix(settings.type)
    decoder = decoder_files(checkpoint, settings, statistics)
    language, vision = decoder[LANGUAGE], vision_file(checkpoint, settings)
    files = {LANGUAGE: language, VISION: vision} | decoder
    with staged(destination, force, sum(file.size for file in files.values())) as folder:
        hashes = write_files(files, folder, console)
        manifest = Manifest(
            kind="gguf",
            source=source_of(checkpoint),
            recipe=recipe,
            tools=tool_versions("gguf", "llama-cpp-python", "torch", "numpy"),
            calibration=calibration_of(statistics) if settings.imatrix == "auto" else None,
            files=list_files(folder, {file.name: component for component, file in files.items()}, hashes),
            tensors=unlike(language, mix.default) | unlike(vision, settings.mmproj_type),
            notes=_notes(spec),
            details={
                "language": language.name,
                "mmproj": vision.name,
                "types": {"language": mix.name, "mmproj": settings.mmproj_type},
                "prompt": asdict(spec.prompt),
            },
        )
        write_manifest(folder, manifest)
    return manifest


def decoder_files(checkpoint: Checkpoint, settings: Gguf, statistics: Statistics | None) -> dict[str, GgufFile]:
    """Component → file of the language model and, where one is used, the importance matrix; not yet written.

    Raises:
        UsageError: there is no importance matrix to take.
    """
    mix = find_mix(settings.type)
    importance = _importance(settings, mix, checkpoint.spec, statistics)
    files = {LANGUAGE: language_file(checkpoint, settings, importance)}
    if importance is not None:
        files["importance matrix"] = imatrix.as_file(IMATRIX, importance)
    return files


def language_file(
    checkpoint: Checkpoint, settings: Gguf, importance: ImportanceMatrix | None, important: bool = False
) -> GgufFile:
    """The language model, not yet written; nothing of the weights is read.

    Args:
        important: choose types as with an importance matrix, although there is none (to plan with).
    """
    spec, mix = checkpoint.spec, find_mix(settings.type)
    tensors = gguf_language.tensors_of(checkpoint)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    types = gguf_language.types_of(spec.language, mix, shapes, important or importance is not None)
    metadata = gguf_language.fields(checkpoint, mix, shapes["token_embd.weight"][0])
    decoder = gguf_language.entries(spec.language, tensors, types, importance)
    return GgufFile(f"{spec.name}-{mix.name.upper()}.gguf", "llama", metadata, decoder)


def vision_file(checkpoint: Checkpoint, settings: Gguf) -> GgufFile:
    """The mmproj, not yet written; nothing of the weights is read.

    Raises:
        Unsupported: libmtmd cannot hold it, or would compute it wrongly.
    """
    kind = settings.mmproj_type
    tower, metadata = mmproj.entries(checkpoint, kind), mmproj.fields(checkpoint.spec, kind)
    return GgufFile(f"mmproj-{checkpoint.spec.name}-{kind.upper()}.gguf", mmproj.ARCHITECTURE, metadata, tower)


def write_files(files: dict[str, GgufFile], folder: Path, console: Console) -> dict[str, str]:
    """Write component → file; file name → SHA-256 is returned."""
    hashes = {}
    for component, file in files.items():
        with console.progress(f"{component}: {file.name}", file.size, "bytes") as advance:
            hashes[file.name] = file.write(folder, advance)
    return hashes


def refuse_gguf(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Say at once what cannot work, before anything long begins. What libmtmd cannot hold, a hybrid can.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model.
        UsageError: the type is unknown.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    library()
    library_path("ggml-base")
    find_mix(recipe.gguf.type)
    if recipe.gguf.vision == "mmproj":
        mmproj.projector_of(checkpoint.spec)


def _importance(settings: Gguf, mix: Mix, spec: Spec, statistics: Statistics | None) -> ImportanceMatrix | None:
    if settings.imatrix == "none" or not mix.uses_importance:
        return None
    if settings.imatrix != "auto":
        return imatrix.read(Path(settings.imatrix))
    if statistics is None:
        raise UsageError(
            f"{mix.name} with imatrix = auto needs calibration statistics", "calibrate first, or pass --imatrix none"
        )
    names = gguf_language.importance_names(spec.language)
    return imatrix.from_statistics(statistics, names, settings.image_weight)


def unlike(file: GgufFile, default: str) -> dict[str, str]:
    """Tensor → type, where it is not the default."""
    return {entry.name: entry.type for entry in file.tensors if entry.type != default}


def _notes(spec: Spec) -> list[str]:
    notes = [JINJA, _CLASS_TOKEN]
    if spec.vision.aspect_ratio != "pad":
        return [*notes, _NOT_PADDED]
    colour = tuple(int(255 * mean) for mean in spec.vision.image_mean)
    return notes if colour == _PADDING else [*notes, _OTHER_COLOUR]
