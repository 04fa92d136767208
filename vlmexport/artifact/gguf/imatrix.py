"""The importance matrix: mean x² per column of a weight, in memory and in llama.cpp's imatrix GGUF format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.rows import Entry
from vlmexport.families.reading.bundles import Field
from vlmexport.quantize.ggml import F32

if TYPE_CHECKING:
    from vlmexport.calibrate.statistics import Statistics

SUM, COUNT = ".in_sum2", ".counts"


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
    """Columns by the GGUF name of their weight, and what they were measured on.

    ``chunks`` is the number of samples, ``chunk_size`` the rows of one; 0 where it is not known.
    """

    columns: Mapping[str, Column]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int = 0


def from_statistics(statistics: Statistics, names: Mapping[str, str], image_weight: float) -> ImportanceMatrix:
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
    return ImportanceMatrix(columns, _dataset(image_weight), len(statistics.samples))


def unmeasured(columns: Mapping[str, int], image_weight: float) -> ImportanceMatrix:
    """What ``from_statistics`` will give, as far as shapes go: to plan with.

    Args:
        columns: GGUF name of a weight → length of its rows.
    """
    zeros = {name: Column(np.zeros(size, np.float32), 1) for name, size in columns.items()}
    return ImportanceMatrix(zeros, _dataset(image_weight), 1)


def _dataset(image_weight: float) -> tuple[str, ...]:
    return (f"vlmexport calibration, image weight {image_weight:g}",)


def as_file(name: str, matrix: ImportanceMatrix) -> GgufFile:
    """As llama-imatrix writes it: ``<weight>.in_sum2`` [1, columns] and ``<weight>.counts`` [1, 1], both F32."""
    rows = max([column.count for column in matrix.columns.values()], default=0)
    fields: dict[str, Field] = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("str[]", list(matrix.datasets)),
        "imatrix.chunk_count": ("u32", matrix.chunks),
        "imatrix.chunk_size": ("u32", matrix.chunk_size or max(1, rows // max(1, matrix.chunks))),
    }
    entries = []
    for weight in sorted(matrix.columns):
        column = matrix.columns[weight]
        count = np.array([column.count], np.float32)
        entries.append(Entry(weight + SUM, (1, column.sum_sq.size), "f32", column.sum_sq))
        entries.append(Entry(weight + COUNT, (1, 1), "f32", count))
    return GgufFile(name, None, fields, entries)
