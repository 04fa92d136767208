"""Tensors of a GGUF file as blocks of rows: each is read, reordered, quantized on its own, by any thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vlmexport.checkpoint.tensors import DTYPES, LazyTensor
from vlmexport.errors import Unsupported
from vlmexport.quantize import ggml
from vlmexport.quantize.floats import refuse_not_finite, widen
from vlmexport.quantize.ggml import F32, U8, row_bytes
from vlmexport.workers.in_order import Buffers

ALIGNMENT = 32
"""Every tensor of a GGUF file begins at a multiple of it."""

VALUES = 1 << 18
"""Values of a block: a megabyte as f32. Speed hardly depends on it; Ctrl-C waits for a block, memory holds a few."""

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Entry:
    """A tensor of a file.

    Attributes:
        shape: in the file, the rows' length last.
        type: a key of ``quantize.ggml.TYPES``.
        source: a checkpoint's tensor, or f32 values in memory.
        heads: where not 0, rows are reordered for llama.cpp's rotary embedding (``interleave``).
        importance: f32 [columns], for types that use it.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    source: LazyTensor | F32
    heads: int = 0
    importance: F32 | None = None

    @property
    def columns(self) -> int:
        """Values in a row. A bias of q or k is a column: its values are reordered as rows are."""
        return 1 if self.heads and len(self.shape) == 1 else self.shape[-1]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return prod(self.shape) // self.columns

    @property
    def bytes(self) -> int:
        """Size in the file, without padding."""
        return self.rows * row_bytes(self.type, self.columns)

    @property
    def padding(self) -> int:
        """Zeros after it."""
        return -self.bytes % ALIGNMENT

    def blocks(self) -> Iterator[Block]:
        """All rows in order; with heads, whole heads."""
        unit = self.rows // self.heads if self.heads else 1
        step = max(1, VALUES // (self.columns * unit)) * unit
        for first in range(0, self.rows, step):
            yield Block(self, first, min(step, self.rows - first))


@dataclass(frozen=True)
class Block:
    """Rows ``first`` to ``first + rows`` of a tensor."""

    entry: Entry
    first: int
    rows: int

    def encode(self, buffers: Buffers) -> U8:
        """Its bytes in the file, and the padding where it is the tensor's last; they lie in ``buffers``.

        Raises:
            CheckpointError: a value is NaN or infinite, or the file cannot be read.
            Unsupported: a value does not fit into f16.
        """
        entry = self.entry
        size = self.rows * row_bytes(entry.type, entry.columns)
        last = self.first + self.rows == entry.rows
        result = buffers.take("result", size + entry.padding if last else size)
        result[size:] = 0
        self._fill(result[:size].reshape(self.rows, -1), buffers)
        return result

    def _fill(self, result: U8, buffers: Buffers) -> None:
        source, heads, columns = self.entry.source, self.entry.heads, self.entry.columns
        if isinstance(source, np.ndarray):
            values = source.reshape(-1, columns)[self.first : self.first + self.rows]
            ggml.quantize(values, self.entry.type, self.entry.importance, result)
            return
        same, width = source.dtype == self.entry.type, columns * DTYPES[source.dtype]
        raw = result if same and not heads else buffers.take("raw", self.rows * width)
        raw = raw.reshape(self.rows, width)
        self._read(source, raw)
        if heads:
            part = self.rows * heads // self.entry.rows
            raw = interleave(raw, part, result if same else buffers.take("turned", raw.size).reshape(raw.shape))
        if not same:
            room = buffers.take("f32", 4 * self.rows * columns).view(np.float32)
            values = widen(raw.reshape(-1), source.dtype, room).reshape(self.rows, columns)
            ggml.quantize(values, self.entry.type, self.entry.importance, result)
            self._check_range(source, result)

    def _read(self, source: LazyTensor, raw: U8) -> None:
        start = self.first * self.entry.columns
        refuse_not_finite(source, source.read_into(raw.reshape(-1), start), start)

    def _check_range(self, source: LazyTensor, result: U8) -> None:
        if ggml.overflows(result, self.entry.type):
            raise Unsupported(
                f"{source.path}: tensor {source.name} holds values so large that {self.entry.type} cannot hold them",
                "choose type bf16 or f32 (`--type`, `--tensor-type`, `--mmproj-type`)",
            )


def interleave(rows: npt.NDArray[Value], heads: int, out: npt.NDArray[Value] | None = None) -> npt.NDArray[Value]:
    """Rows of q and k in the order of llama.cpp's rotary embedding: [rows, ...], first and second half of each head
    taken in turn."""
    result = np.empty_like(rows) if out is None else out
    half = rows.shape[0] // heads // 2
    np.copyto(result.reshape(heads, half, 2, -1), rows.reshape(heads, 2, half, -1).swapaxes(1, 2))
    return result
