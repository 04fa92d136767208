"""Read an importance matrix of llama.cpp, GGUF or the older .dat, and hold it against a model.

Source of the formats: ``common/imatrix-loader.cpp`` and ``tools/imatrix`` of llama.cpp at 0c1e57098.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from vlmexport.artifact.gguf.file import library
from vlmexport.artifact.gguf.header import refuse_bomb
from vlmexport.artifact.gguf.imatrix import COUNT, SUM, Column, ImportanceMatrix
from vlmexport.errors import UsageError
from vlmexport.quantize.gguf_mix import in_order, quantizable

_MAGIC = b"GGUF"
_LARGEST = 1 << 30
"""Bytes of a .dat: a model of 70 billion weights has 25 MB, one with 256 experts less than a gigabyte."""

_CURE = "write it with llama-imatrix, or use --imatrix auto"
_OTHER = "it was measured on another model: use --imatrix auto or none"
_EXPERTS = "importance matrices of models with experts are not known"


class Shaped(Protocol):
    """A tensor's shape, rows first."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def read(path: Path) -> ImportanceMatrix:
    """Read a file of llama-imatrix, or of a bundle.

    Raises:
        UsageError: missing, of another format, damaged, of a model with experts, or with values that are no sums of
            squares.
    """
    if not path.is_file():
        raise UsageError(f"importance matrix {path} does not exist", "check the path, or use --imatrix auto")
    with path.open("rb") as file:
        is_gguf = file.read(len(_MAGIC)) == _MAGIC
    try:
        found = _read_gguf(path) if is_gguf else _read_dat(_bounded(path))
    except (ValueError, OSError, IndexError, KeyError, OverflowError, MemoryError, struct.error) as error:
        raise UsageError(f"{path} is no importance matrix of llama.cpp ({error})", _CURE) from error
    if not found.columns:
        raise UsageError(f"{path} is an importance matrix without tensors", _CURE)
    for name, column in found.columns.items():
        if not np.isfinite(column.sum_sq).all() or column.sum_sq.min(initial=0) < 0:
            raise UsageError(f"{path}: {name} holds NaN, infinity or a negative sum", "measure it again")
    return found


def check_model(found: ImportanceMatrix, tensors: Mapping[str, Shaped], path: str) -> None:
    """See that an importance matrix was measured on a model of these shapes.

    The output and the embedding may be missing, as llama-imatrix leaves them out.

    Args:
        tensors: GGUF name → tensor.

    Raises:
        UsageError: it names a tensor that the model lacks, or the reverse, or has other columns.
    """
    wanted = {name: tensor.shape[-1] for name, tensor in tensors.items() if quantizable(name, tensor.shape)}
    _refuse(f"{path} holds", [name for name in found.columns if name not in wanted and name != "output.weight"],
            "which the model has not")  # fmt: skip
    _refuse(f"{path} lacks", [name for name in in_order(wanted) if "blk." in name and name not in found.columns],
            "which the model has")  # fmt: skip
    for name, column in found.columns.items():
        if name in wanted and column.sum_sq.size != wanted[name]:
            raise UsageError(
                f"{path} has {column.sum_sq.size} columns for {name}, the model has {wanted[name]}", _OTHER
            )


def _refuse(what: str, names: Sequence[str], why: str) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UsageError(f"{what} {names[0]}{more}, {why}", _OTHER)


def _read_gguf(path: Path) -> ImportanceMatrix:
    gguf = library()
    refuse_bomb(path)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    if fields.get("general.type") != "imatrix":
        raise ValueError(f"general.type is {fields.get('general.type')!r}")
    tensors = {}
    for tensor in reader.tensors:
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32:
            raise ValueError(f"{tensor.name} is not F32")
        tensors[tensor.name] = np.array(tensor.data, np.float32).reshape(-1)
    columns = {}
    for name in (key.removesuffix(SUM) for key in tensors if key.endswith(SUM)):
        counts = tensors.get(name + COUNT)
        if counts is None:
            raise ValueError(f"{name} has no count")
        if counts.size != 1:
            raise ValueError(f"{name} has {counts.size} counts: {_EXPERTS}")
        if not np.isfinite(counts[0]) or counts[0] < 0:
            raise ValueError(f"{name} has the count {counts[0]}")
        if round(float(counts[0])) > 0:
            columns[name] = Column(tensors[name + SUM], round(float(counts[0])))
    datasets = fields.get("imatrix.datasets", [])
    chunks, size = (int(fields.get(f"imatrix.{key}", 0)) for key in ("chunk_count", "chunk_size"))
    return ImportanceMatrix(columns, tuple(map(str, datasets)), chunks, size)


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return path.read_bytes()


def _read_dat(data: bytes) -> ImportanceMatrix:
    """The format before 2025-07: sums are means times the number of chunks, which is the count."""
    whole = _Bytes(data)
    columns = {}
    for _ in range(whole.count()):
        name, count, size = whole.text(), whole.count(), whole.count()
        if not name or not size:
            raise ValueError("an entry without name or values")
        columns[name] = Column(whole.floats(size), max(1, count))
    chunks, datasets = 0, []
    if not whole.ended:
        chunks = whole.count()
        datasets = [whole.text()] if not whole.ended else []
    return ImportanceMatrix(columns, tuple(datasets), chunks, 1)


class _Bytes:
    """Little-endian values one after the other; a ValueError where the data end before."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError(f"it ends at byte {len(self._data)}, in the middle of a value")
        self._at += size
        return self._data[self._at - size : self._at]

    def count(self) -> int:
        value: int = struct.unpack("<i", self.take(4))[0]
        if value < 0:
            raise ValueError(f"a length of {value} at byte {self._at - 4}")
        return value

    def text(self) -> str:
        return self.take(self.count()).decode("utf-8")

    def floats(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.frombuffer(self.take(4 * count), "<f4").astype(np.float32)
