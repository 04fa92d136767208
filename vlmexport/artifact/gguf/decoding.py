"""The decoding half of a GGUF bundle or a hybrid: the language model, by a mix of types or by a budget, and its
importance matrix."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact.bundle.halves import LLAMA_CPP, DecodingHalf, Role
from vlmexport.artifact.bundle.writing import Progress, Written
from vlmexport.artifact.gguf import budget as gguf_budget
from vlmexport.artifact.gguf import imatrix, imatrix_reader, vocabulary
from vlmexport.artifact.gguf import language as gguf_language
from vlmexport.artifact.gguf.budget import Budget
from vlmexport.artifact.gguf.file import GgufFile, library, unlike
from vlmexport.artifact.gguf.imatrix import ImportanceMatrix
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.processing.fast_tokenizer import FastTokenizer
from vlmexport.quantize import ggml
from vlmexport.quantize.gguf_mix import find_mix, mostly
from vlmexport.quantize.gguf_override import given_types
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics

IMATRIX = "imatrix.gguf"
_JINJA = "llama.cpp needs --jinja: without it the built-in vicuna template is taken, which writes other line breaks"


class GgufDecoding:
    """``<name>-<TYPE>.gguf`` and, where it is used, ``imatrix.gguf``. Until something is measured, its files are those
    of the same sizes; with a budget, those of the type that it takes the place of.

    Args:
        seeing: bytes of the other half that run, which a budget for all of them is spent on too.

    Raises:
        Unsupported: GGUF cannot hold the language model.
        UsageError: a type is unknown, does not fit, or needs an importance matrix; a file of one is of no use.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """

    tools = ("gguf", "llama-cpp-python", "torch", "numpy")
    notes = (_JINJA,)

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, seeing: int) -> None:
        refuse_language(checkpoint)
        self._checkpoint, self._recipe, self._settings = checkpoint, recipe, recipe.gguf
        self._seeing = seeing
        self._budget: Budget | None = None
        self._mix, self._importance = find_mix(recipe.gguf.type), self._planned_importance()
        self._language = self._file()

    @property
    def sizes(self) -> dict[Role, int]:
        """Exact; at most, where a budget is spent."""
        spent = self._settings.budget is not None
        found: dict[Role, int] = {"language": self._header + self._room if spent else self._language.size}
        return found if self._importance is None else found | {"imatrix": self._matrix(self._importance).size}

    def refuse(self) -> None:
        """Ask libllama whether it tokenizes alike, and refuse a budget that is too small.

        Raises:
            Unsupported: llama.cpp tokenizes a text otherwise.
            UsageError: not even the smallest types fit.
        """
        spec, tokenizer = self._checkpoint.spec, self._checkpoint.tokenizer
        if isinstance(tokenizer, FastTokenizer):
            vocabulary.prove(tokenizer, self._language, spec.stop_token_ids)
        if self._settings.budget:
            gguf_budget.refuse_too_small(list(self._language.tensors), self._given, self._room)

    def settle(self, measured: Measured, console: Console) -> None:
        """With what was measured: an importance matrix, and the types that a budget is spent on. Weights are read only
        for those.

        Raises:
            UsageError: a budget is too small.
        """
        if self._importance is not None and self._settings.imatrix == "auto":
            self._importance = self._measured_importance(measured.statistics)
            self._language = self._file()
        if self._settings.budget:
            assert measured.sensitivity is not None
            entries, room = list(self._language.tensors), self._room
            self._budget = gguf_budget.choose(
                self._checkpoint.spec.language, entries, self._given, measured.sensitivity, room, console
            )
            self._language = self._file(self._budget)

    def write(self, measured: Measured, folder: Path, progress: Progress) -> Written[DecodingHalf]:
        """The files, and what the manifest says of them."""
        files: dict[Role, GgufFile] = {"language": self._language}
        if self._importance is not None:
            files["imatrix"] = self._matrix(self._importance)
        hashes = {file.name: file.write(folder, progress(role)) for role, file in files.items()}
        half = DecodingHalf(
            engine=LLAMA_CPP,
            precision=self._settings.budget or self._mix.name,
            files={"language": self._language.name},
            budget=self._budget.facts if self._budget else None,
        )
        roles = {file.name: role for role, file in files.items()}
        return Written(half, roles, hashes, unlike(self._language, self._mix.default))

    @cached_property
    def _tensors(self) -> Mapping[str, LazyTensor]:
        return gguf_language.tensors_of(self._checkpoint)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    @cached_property
    def _given(self) -> dict[str, str]:
        """GGUF name → type that was given by hand."""
        return given_types(self._settings.tensor_types, self._shapes)

    @property
    def _header(self) -> int:
        return len(self._language.header)

    @cached_property
    def _room(self) -> int:
        """Bytes that a budget leaves to the tensors of the language model. ``max_size`` is that of the files that run:
        language model with header, and mmproj or vision encoder."""
        settings = self._settings
        if settings.max_bytes is None:
            return int((settings.bpw or 0) * self._checkpoint.parameters("language") / 8)
        return settings.max_bytes - self._seeing - self._header

    def _file(self, budget: Budget | None = None) -> GgufFile:
        """The language model's, not yet written, of the types of the mix or of a budget."""
        checkpoint, spec, shapes = self._checkpoint, self._checkpoint.spec, self._shapes
        types = gguf_language.types_of(
            spec.language, self._mix, self._settings.tensor_types, shapes, self._importance
        )  # fmt: skip
        if budget is not None:
            types |= budget.types
            self._mix = mostly({name: (types[name], prod(shapes[name])) for name in budget.types})
        return GgufFile(
            f"{spec.name}-{self._settings.budget or self._mix.name.upper()}.gguf",
            plugins.language(spec.language).gguf(spec.language).architecture,
            gguf_language.fields(checkpoint, self._mix, shapes["token_embd.weight"][0]),
            gguf_language.entries(spec.language, self._tensors, types, self._importance),
        )

    def _matrix(self, importance: ImportanceMatrix) -> GgufFile:
        return imatrix.as_file(IMATRIX, importance)

    def _planned_importance(self) -> ImportanceMatrix | None:
        """The importance matrix that the recipe asks for: a file, or one of the shapes of what is yet to measure."""
        settings = self._settings
        if not settings.uses_importance:
            return None
        if settings.imatrix != "auto":
            found = imatrix_reader.read(Path(settings.imatrix))
            imatrix_reader.check_model(found, self._tensors, settings.imatrix)
            return found
        columns = {name: tensor.columns for name, tensor in self._tensors.items()}
        names = gguf_language.importance_names(self._checkpoint.spec.language)
        return imatrix.unmeasured({name: columns[name] for name in names.values()}, self._weight)

    def _measured_importance(self, statistics: Statistics | None) -> ImportanceMatrix:
        assert statistics is not None
        names = gguf_language.importance_names(self._checkpoint.spec.language)
        return imatrix.from_statistics(statistics, names, self._weight)

    @property
    def _weight(self) -> float:
        """Of positions of images."""
        return self._recipe.calibration.image_weight


def refuse_language(checkpoint: Checkpoint) -> None:
    """What no vision encoder could mend.

    Raises:
        Unsupported: GGUF cannot hold the language model.
        MissingDependency: gguf or llama-cpp-python is not installed.
    """
    language = checkpoint.spec.language
    plugins.language(language).gguf(language)
    library()
    ggml.library_path("ggml-base")
