"""The language model's file of a GGUF or hybrid bundle, and its importance matrix: by a mix of types or by a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact.bundle.halves import LLAMA_CPP, DecodingHalf, Role
from vlmexport.artifact.gguf import budget as gguf_budget
from vlmexport.artifact.gguf import imatrix, imatrix_reader, mmproj, vocabulary
from vlmexport.artifact.gguf import language as gguf_language
from vlmexport.artifact.gguf.budget import Budget
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.imatrix import ImportanceMatrix
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.processing.fast_tokenizer import FastTokenizer
from vlmexport.quantize.gguf_mix import Mix, find_mix, mostly
from vlmexport.quantize.gguf_override import given_types
from vlmexport.recipe import Gguf, Recipe
from vlmexport.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics

IMATRIX = "imatrix.gguf"
LANGUAGE: Role = "language"
MMPROJ: Role = "mmproj"
IMPORTANCE: Role = "imatrix"


@dataclass(frozen=True)
class Decoder:
    """Role → file, not yet written; what the language model's types are called, and what most tensors have."""

    files: dict[Role, GgufFile]
    types: str
    default: str
    budget: Budget | None = None

    def half(self) -> DecodingHalf:
        """What the manifest says of it."""
        return DecodingHalf(
            engine=LLAMA_CPP,
            precision=self.types,
            files={LANGUAGE: self.files[LANGUAGE].name},
            budget=self.budget.facts if self.budget else None,
        )

    def unlike(self) -> dict[str, str]:
        """Tensor → type, where it is not the default."""
        return unlike(self.files[LANGUAGE], self.default)


def build(checkpoint: Checkpoint, recipe: Recipe, measured: Measured, console: Console) -> Decoder:
    """The files of the language model; weights are read only where a budget is to be spent.

    Raises:
        UsageError: a budget is too small, or the file of an importance matrix is of no use.
    """
    settings, sensitivity = recipe.gguf, measured.sensitivity
    importance = _importance(checkpoint, recipe, measured.statistics)
    files, mix = _files(checkpoint, settings, importance)
    if not settings.budget:
        return Decoder(files, mix.name, mix.default)
    assert sensitivity is not None
    entries, room = list(files[LANGUAGE].tensors), budget_bytes(checkpoint, recipe, files[LANGUAGE])
    budget = gguf_budget.choose(
        checkpoint.spec.language, entries, _given(checkpoint, settings), sensitivity, room, console
    )
    files, mix = _files(checkpoint, settings, importance, budget.types)
    return Decoder(files, settings.budget, mix.default, budget)


def planned(checkpoint: Checkpoint, recipe: Recipe) -> dict[Role, GgufFile]:
    """Files of the size that an export would write, before anything is measured. With a budget, those of the type that
    it takes the place of.

    Raises:
        Unsupported: GGUF cannot hold the model.
        UsageError: a type is unknown, does not fit, or needs an importance matrix.
    """
    return _files(checkpoint, recipe.gguf, _importance(checkpoint, recipe, None, planned=True))[0]


def refuse(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Say at once what cannot work, budgets that are too small included.

    Raises:
        Unsupported: GGUF cannot hold the model, or llama.cpp tokenizes a text otherwise.
        UsageError: a type is unknown, does not fit, or needs an importance matrix; a file of one is of no use.
    """
    language = planned(checkpoint, recipe)[LANGUAGE]
    if isinstance(checkpoint.tokenizer, FastTokenizer):
        vocabulary.prove(checkpoint.tokenizer, language, checkpoint.spec.stop_token_ids)
    if recipe.gguf.budget:
        room = budget_bytes(checkpoint, recipe, language)
        gguf_budget.refuse_too_small(list(language.tensors), _given(checkpoint, recipe.gguf), room)


def budget_bytes(checkpoint: Checkpoint, recipe: Recipe, language: GgufFile) -> int:
    """Bytes that a budget leaves to the tensors of the language model.

    ``max_size`` is that of the files that run: language model with header, and mmproj or vision encoder.
    """
    settings = recipe.gguf
    if settings.max_bytes is None:
        return int((settings.bpw or 0) * checkpoint.parameters("language") / 8)
    return settings.max_bytes - _vision_bytes(checkpoint, recipe) - len(language.header)


def bytes_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes of the files; at most, where a budget is spent."""
    files = planned(checkpoint, recipe)
    language = files[LANGUAGE]
    size = language.size
    if recipe.gguf.budget:
        size = len(language.header) + budget_bytes(checkpoint, recipe, language)
    return size + sum(file.size for component, file in files.items() if component != LANGUAGE)


def unlike(file: GgufFile, default: str) -> dict[str, str]:
    """Tensor → type, where it is not the default."""
    return {entry.name: entry.type for entry in file.tensors if entry.type != default}


def _vision_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    if recipe.gguf.vision == "mmproj":
        return mmproj.file(checkpoint, recipe.gguf.mmproj_type).size
    from vlmexport.artifact.onnx.sizes import vision_sizes  # it needs onnx, which a GGUF bundle does not

    return vision_sizes(checkpoint, recipe.onnx)["vision_encoder"]


def _files(
    checkpoint: Checkpoint,
    settings: Gguf,
    importance: ImportanceMatrix | None,
    chosen: Mapping[str, str] | None = None,
) -> tuple[dict[Role, GgufFile], Mix]:
    """``chosen``: GGUF name → type of the tensors, where a budget decides and not a mix."""
    spec, mix = checkpoint.spec, find_mix(settings.type)
    tensors = gguf_language.tensors_of(checkpoint)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    types = gguf_language.types_of(spec.language, mix, settings.tensor_types, shapes, importance)
    if chosen is not None:
        types |= chosen
        mix = mostly({name: (types[name], prod(shapes[name])) for name in chosen})
    metadata = gguf_language.fields(checkpoint, mix, shapes["token_embd.weight"][0])
    entries = gguf_language.entries(spec.language, tensors, types, importance)
    name = f"{spec.name}-{settings.budget or mix.name.upper()}.gguf"
    architecture = plugins.language(spec.language).gguf(spec.language).architecture
    files: dict[Role, GgufFile] = {LANGUAGE: GgufFile(name, architecture, metadata, entries)}
    return (files if importance is None else files | {IMPORTANCE: imatrix.as_file(IMATRIX, importance)}), mix


def _given(checkpoint: Checkpoint, settings: Gguf) -> dict[str, str]:
    shapes = {name: tensor.shape for name, tensor in gguf_language.tensors_of(checkpoint).items()}
    return given_types(settings.tensor_types, shapes)


def _importance(
    checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics | None, planned: bool = False
) -> ImportanceMatrix | None:
    """The importance matrix that a recipe asks for; ``planned``: one of the same shapes where it is yet to measure."""
    settings, weight = recipe.gguf, recipe.calibration.image_weight
    if not settings.uses_importance:
        return None
    names = gguf_language.importance_names(checkpoint.spec.language)
    if settings.imatrix != "auto":
        found = imatrix_reader.read(Path(settings.imatrix))
        imatrix_reader.check_model(found, gguf_language.tensors_of(checkpoint), settings.imatrix)
        return found
    if planned:
        columns = {name: tensor.columns for name, tensor in gguf_language.tensors_of(checkpoint).items()}
        return imatrix.unmeasured({name: columns[name] for name in names.values()}, weight)
    assert statistics is not None
    return imatrix.from_statistics(statistics, names, weight)
