"""Write a GGUF file tensor by tensor: only one tensor is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmexport.errors import MissingDependency
from vlmexport.quantize.ggml import INSTALL, TYPES, U8, row_bytes

Field = tuple[str, Any]
"""A metadata value with its type: ``u32``, ``f32``, ``bool``, ``str``, or an array such as ``i32[]``."""

_VALUE_TYPES = {"u32": "UINT32", "i32": "INT32", "f32": "FLOAT32", "bool": "BOOL", "str": "STRING"}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: shape with the rows' length last, a type of ``quantize.ggml.TYPES``, and how to get it.

    ``load`` returns its bytes: u8 of any shape, in row order.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    load: Callable[[], U8]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows * row_bytes(self.type, self.shape[-1])


def library() -> Any:
    """The ``gguf`` package.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingDependency("GGUF needs the package gguf, which is not installed", INSTALL) from error
    return gguf


def write(
    path: Path,
    architecture: str | None,
    fields: Mapping[str, Field],
    tensors: Sequence[Entry],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Write a little-endian GGUF file, the tensors in the order given; the same input gives the same bytes.

    Args:
        architecture: ``general.architecture``; None leaves it out (an importance matrix has none).
        advance: called after each tensor.
    """
    gguf = library()
    writer = gguf.GGUFWriter(path, architecture or "")
    if architecture is None:
        writer.kv_data[0].pop("general.architecture", None)
    for key, (kind, value) in fields.items():
        scalar = gguf.GGUFValueType[_VALUE_TYPES[kind.removesuffix("[]")]]
        if kind.endswith("[]"):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, scalar)
        else:
            writer.add_key_value(key, value, scalar)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(TYPES[tensor.type].id)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.load())
            advance()
    finally:
        writer.close()
