"""Write a GGUF bundle: the language model, its mmproj and the importance matrix, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact import gguf_about, gguf_budget, gguf_language, imatrix, imatrix_file, mmproj
from vlmexport.artifact.bundle import (
    Manifest,
    calibration_of,
    list_files,
    source_of,
    staged,
    tool_versions,
    write_manifest,
)
from vlmexport.artifact.gguf_budget import Budget
from vlmexport.artifact.gguf_file import GgufFile, library
from vlmexport.artifact.gguf_rows import Entry
from vlmexport.artifact.imatrix import ImportanceMatrix
from vlmexport.checkpoint import Checkpoint, Spec
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import library_path
from vlmexport.quantize.gguf_mix import find_mix, mostly
from vlmexport.quantize.gguf_override import given_types
from vlmexport.recipe import Gguf, Recipe

if TYPE_CHECKING:
    from vlmexport.calibrate.sensitivity import Sensitivity
    from vlmexport.calibrate.statistics import Statistics

IMATRIX = "imatrix.gguf"
LANGUAGE, VISION, IMPORTANCE = "language", "vision+projector", "importance matrix"
_JINJA = "llama.cpp needs --jinja: without it the built-in vicuna template is taken, which writes other line breaks"
_CLASS_TOKEN = (
    "stock libmtmd shifts the position embeddings of this tower by one (llama.cpp #25814); vlmexport repairs that when "
    "it runs the bundle, other programs need a llama.cpp that has the fix"
)
_NOT_PADDED = "libmtmd pads images to a square, this model was trained on centre crops: wide images differ"


def export_gguf(
    checkpoint: Checkpoint,
    recipe: Recipe,
    statistics: Statistics | None,
    destination: Path,
    *,
    force: bool,
    console: Console,
    sensitivity: Sensitivity | None = None,
) -> Manifest:
    """Export a checkpoint to a folder with ``<name>-<TYPE>.gguf``, ``mmproj-<name>-<TYPE>.gguf`` and, where it was
    used, ``imatrix.gguf``.

    Args:
        statistics: of a calibration pass; needed where ``recipe.gguf.imatrix`` is ``auto`` and the type uses it.
        force: replace a bundle that is there.
        sensitivity: of the same pass; needed where a budget is set.

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
    importance = _importance(checkpoint, settings, statistics)
    files, budget = bundle_files(checkpoint, settings, importance), None
    if settings.budget:
        if sensitivity is None:
            raise UsageError("a budget needs sensitivities", "calibrate with them first")
        budget = _spend(checkpoint, settings, files, sensitivity, console)
        files = bundle_files(checkpoint, settings, importance, budget.types)
    language, vision = files[LANGUAGE], files[VISION]
    with staged(destination, force, sum(file.size for file in files.values())) as folder:
        hashes = _write(files, folder, console)
        manifest = Manifest(
            kind="gguf",
            source=source_of(checkpoint),
            recipe=recipe,
            tools=tool_versions("gguf", "llama-cpp-python", "torch", "numpy"),
            calibration=calibration_of(statistics) if settings.imatrix == "auto" else None,
            files=list_files(folder, {file.name: component for component, file in files.items()}, hashes),
            tensors=_unlike(language, mix.default) | _unlike(vision, settings.mmproj_type),
            notes=_notes(spec),
            details={
                "language": language.name,
                "mmproj": vision.name,
                "types": {"language": settings.budget or mix.name, "mmproj": settings.mmproj_type},
                "prompt": asdict(spec.prompt),
            }
            | ({"budget": budget.facts()} if budget else {}),
        )
        write_manifest(folder, manifest)
    return manifest


def bundle_files(
    checkpoint: Checkpoint,
    settings: Gguf,
    importance: ImportanceMatrix | None,
    chosen: Mapping[str, str] | None = None,
) -> dict[str, GgufFile]:
    """Component → file, not yet written; nothing of the weights is read.

    Args:
        chosen: GGUF name → type of the language model's tensors, where a budget decides and not a mix.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model.
        UsageError: a type is unknown, does not fit, or needs an importance matrix.
    """
    spec, mix = checkpoint.spec, find_mix(settings.type)
    tensors = gguf_language.tensors_of(checkpoint)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    types = gguf_language.types_of(spec.language, mix, settings.tensor_types, shapes, importance)
    if chosen is not None:
        types |= chosen
        mix = mostly({name: (types[name], prod(shapes[name])) for name in chosen})
    metadata = gguf_language.fields(checkpoint, mix, shapes["token_embd.weight"][0])
    decoder = gguf_language.entries(spec.language, tensors, types, importance)
    tower, tower_metadata = mmproj.entries(checkpoint, settings.mmproj_type), mmproj.fields(spec, settings.mmproj_type)
    tower_metadata |= gguf_about.fields(checkpoint, "vision", "projector")
    tower_name = f"mmproj-{spec.name}-{settings.mmproj_type.upper()}.gguf"
    files = {
        LANGUAGE: GgufFile(f"{spec.name}-{settings.budget or mix.name.upper()}.gguf", "llama", metadata, decoder),
        VISION: GgufFile(tower_name, mmproj.ARCHITECTURE, tower_metadata, tower),
    }
    return files if importance is None else files | {IMPORTANCE: imatrix.as_file(IMATRIX, importance)}


def planned_files(checkpoint: Checkpoint, settings: Gguf) -> dict[str, GgufFile]:
    """What an export would write, of exactly that size, before anything is measured. With a budget, what the type
    would be that it takes the place of."""
    return bundle_files(checkpoint, settings, _importance(checkpoint, settings, None, planned=True))


def _write(files: dict[str, GgufFile], folder: Path, console: Console) -> dict[str, str]:
    """Write component → file; file name → SHA-256 is returned."""
    hashes = {}
    for component, file in files.items():
        with console.progress(f"{component}: {file.name}", file.size, "bytes") as advance:
            hashes[file.name] = file.write(folder, advance)
    return hashes


def refuse_gguf(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Say at once what cannot work, before anything long begins.

    Raises:
        Unsupported: GGUF or libmtmd cannot hold the model.
        UsageError: a type is unknown, does not fit, or needs an importance matrix; a file of one is of no use.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    library()
    library_path("ggml-base")
    find_mix(recipe.gguf.type)
    mmproj.projector_of(checkpoint.spec)
    files = planned_files(checkpoint, recipe.gguf)
    if recipe.gguf.budget:
        gguf_budget.refuse_too_small(
            *_free(checkpoint, recipe.gguf, files), budget_bytes(checkpoint, recipe.gguf, files)
        )


def budget_bytes(checkpoint: Checkpoint, settings: Gguf, files: Mapping[str, GgufFile]) -> int:
    """Bytes that a budget leaves to the tensors of the language model."""
    weights = checkpoint.parameters("language")
    return gguf_budget.limit(files, LANGUAGE, settings.max_bytes, settings.bpw, weights)


def _free(checkpoint: Checkpoint, settings: Gguf, files: Mapping[str, GgufFile]) -> tuple[list[Entry], dict[str, str]]:
    """The language model's tensors, and the types that were given by hand."""
    shapes = {name: tensor.shape for name, tensor in gguf_language.tensors_of(checkpoint).items()}
    return list(files[LANGUAGE].tensors), given_types(settings.tensor_types, shapes)


def _spend(
    checkpoint: Checkpoint, settings: Gguf, files: Mapping[str, GgufFile], sensitivity: Sensitivity, console: Console
) -> Budget:
    entries, given = _free(checkpoint, settings, files)
    room = budget_bytes(checkpoint, settings, files)
    return gguf_budget.choose(checkpoint, entries, given, sensitivity, room, console)


def _importance(
    checkpoint: Checkpoint, settings: Gguf, statistics: Statistics | None, planned: bool = False
) -> ImportanceMatrix | None:
    """The importance matrix that a recipe asks for; ``planned``: one of the same shapes where it is yet to measure."""
    if not settings.uses_importance:
        return None
    spec = checkpoint.spec.language
    names = gguf_language.importance_names(spec)
    if settings.imatrix != "auto":
        found = imatrix_file.read(Path(settings.imatrix))
        imatrix_file.check_model(found, gguf_language.tensors_of(checkpoint), settings.imatrix)
        return found
    if planned:
        columns = {name: tensor.columns for name, tensor in gguf_language.tensors_of(checkpoint).items()}
        return imatrix.unmeasured({name: columns[name] for name in names.values()}, settings.image_weight)
    if statistics is None:
        raise UsageError(
            f"{settings.type} with imatrix = auto needs calibration statistics",
            "calibrate first, or pass --imatrix none",
        )
    return imatrix.from_statistics(statistics, names, settings.image_weight)


def _unlike(file: GgufFile, default: str) -> dict[str, str]:
    return {entry.name: entry.type for entry in file.tensors if entry.type != default}


def _notes(spec: Spec) -> list[str]:
    notes = [_JINJA, _CLASS_TOKEN]
    return notes if spec.vision.aspect_ratio == "pad" else [*notes, _NOT_PADDED]
