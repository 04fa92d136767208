"""The importance matrix: mean x² per column of a weight, in memory and in llama.cpp's imatrix GGUF format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmexport.artifact.gguf_file import Field, GgufFile, library
from vlmexport.artifact.gguf_rows import Entry
from vlmexport.errors import UsageError
from vlmexport.quantize.ggml import F32

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics

_SUM, _COUNT = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Column:
    """What went into one weight: f32 [columns] Σx², and the number of rows it was summed over."""

    sum_sq: F32
    count: int

    @property
    def mean(self) -> F32:
        """f32 [columns] mean x², divided in float32 as llama-quantize does."""
        mean: F32 = self.sum_sq / np.float32(self.count)
        return mean


@dataclass(frozen=True)
class ImportanceMatrix:
    """Columns by the GGUF name of their weight, and where they were measured."""

    columns: dict[str, Column]
    dataset: str
    chunks: int

    def mean(self, name: str, columns: int) -> F32 | None:
        """f32 [columns] of a weight, None where it has not been measured.

        Raises:
            UsageError: measured on a model of another width.
        """
        found = self.columns.get(name)
        if found is None:
            return None
        if found.sum_sq.shape != (columns,):
            raise UsageError(
                f"the importance matrix has {found.sum_sq.size} columns for {name}, the model has {columns}",
                "it was measured on another model: use --imatrix auto or none",
            )
        return found.mean


def from_statistics(statistics: Statistics, names: dict[str, str], image_weight: float) -> ImportanceMatrix:
    """The importance matrix of calibration statistics.

    Counts are whole numbers in the file, so weighted sums are stored as mean times the rounded weighted count.

    Args:
        names: layer path of the statistics → GGUF name of its weight.
        image_weight: what an image position weighs against a text position.
    """
    columns = {}
    for path, name in names.items():
        layer = statistics.layers.get(path)
        if layer is None:
            continue
        count = round(image_weight * layer.count_image + layer.count_text)
        if count:
            mean = layer.importance(image_weight)
            columns[name] = Column((mean * count).astype(np.float32), count)
    dataset = f"vlmexport calibration, image weight {image_weight:g}"
    return ImportanceMatrix(columns, dataset, len(statistics.samples))


def as_file(name: str, matrix: ImportanceMatrix) -> GgufFile:
    """As llama-imatrix writes it: ``<weight>.in_sum2`` [1, columns] and ``<weight>.counts`` [1, 1], both F32."""
    rows = max([column.count for column in matrix.columns.values()], default=0)
    fields: dict[str, Field] = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("str[]", [matrix.dataset]),
        "imatrix.chunk_count": ("u32", matrix.chunks),
        "imatrix.chunk_size": ("u32", max(1, rows // max(1, matrix.chunks))),
    }
    entries = []
    for weight in sorted(matrix.columns):
        column = matrix.columns[weight]
        count = np.array([column.count], np.float32)
        entries.append(Entry(weight + _SUM, (1, column.sum_sq.size), "f32", column.sum_sq))
        entries.append(Entry(weight + _COUNT, (1, 1), "f32", count))
    return GgufFile(name, None, fields, entries)


def read(path: Path) -> ImportanceMatrix:
    """Read an imatrix GGUF file (ours or llama-imatrix's).

    Raises:
        UsageError: missing, of another format, or of a model with experts.
    """
    if not path.is_file():
        raise UsageError(f"importance matrix {path} does not exist", "check the path, or use --imatrix auto")
    cure = "write it with a llama-imatrix of 2025-07 or later, or use --imatrix auto"
    try:
        reader = library().GGUFReader(path)
        tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in reader.tensors}
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise UsageError(f"{path} is no GGUF importance matrix ({error})", cure) from error
    if fields.get("general.type") != "imatrix":
        raise UsageError(f"{path} is no GGUF importance matrix", cure)
    columns = {}
    for key, sums in tensors.items():
        if not key.endswith(_SUM):
            continue
        name = key.removesuffix(_SUM)
        counts = tensors.get(name + _COUNT)
        if counts is None or counts.size != 1:
            raise UsageError(f"{path}: {name} has not one count", "importance matrices of expert models are not known")
        if counts[0] > 0:
            columns[name] = Column(sums, int(counts[0]))
    datasets = fields.get("imatrix.datasets") or ["unknown"]
    return ImportanceMatrix(columns, str(datasets[0]), int(fields.get("imatrix.chunk_count", 0)))
