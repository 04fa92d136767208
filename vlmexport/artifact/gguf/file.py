"""A GGUF file: its header is made in memory, so that its size is known; its tensors go through it block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from vlmexport.artifact.gguf.rows import ALIGNMENT, Entry
from vlmexport.console import Advance, no_advance
from vlmexport.errors import MissingDependency
from vlmexport.families.reading.bundles import Field
from vlmexport.quantize import ggml
from vlmexport.quantize.ggml import INSTALL, TYPES
from vlmexport.threads import cores
from vlmexport.workers.in_order import in_order

_VALUE_TYPES = {"u32": "UINT32", "i32": "INT32", "f32": "FLOAT32", "bool": "BOOL", "str": "STRING"}


@dataclass(frozen=True)
class GgufFile:
    """A little-endian GGUF file that can be written; the same input gives the same bytes.

    ``architecture`` is ``general.architecture``; None leaves it out (an importance matrix has none). Tensors stand
    in the order given.
    """

    name: str
    architecture: str | None
    fields: Mapping[str, Field]
    tensors: Sequence[Entry]

    @property
    def size(self) -> int:
        """Its exact number of bytes."""
        return len(self.header) + sum(tensor.bytes + tensor.padding for tensor in self.tensors)

    @cached_property
    def header(self) -> bytes:
        """All that stands before the first tensor, padding included."""
        gguf = library()
        writer = gguf.GGUFWriter(None, self.architecture or "")
        if self.architecture is None:
            writer.kv_data[0].pop("general.architecture", None)
        for key, (kind, value) in self.fields.items():
            scalar = gguf.GGUFValueType[_VALUE_TYPES[kind.removesuffix("[]")]]
            if kind.endswith("[]"):
                writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, scalar)
            else:
                writer.add_key_value(key, value, scalar)
        for tensor in self.tensors:
            kind = gguf.GGMLQuantizationType(TYPES[tensor.type].id)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
        memory = BytesIO()
        writer.fout, writer.state = [memory], gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        head = memory.getvalue()
        return head + bytes(-len(head) % ALIGNMENT)

    def write(self, folder: Path, advance: Advance = no_advance, threads: int | None = None) -> str:
        """Write it into a folder; its SHA-256 is returned.

        Blocks of rows are read and quantized by as many threads as there are cores, or as are given. Here they are
        written and hashed in order while the next ones are made: the file need not be read again for its hash, and
        memory holds a few blocks whatever its size.

        Args:
            advance: called with the bytes of each block.
        """
        for kind in sorted({tensor.type for tensor in self.tensors}):
            ggml.prepare(kind)  # here, where Ctrl-C is heard: threads that compile end when they are done
        jobs = (block.encode for tensor in self.tensors for block in tensor.blocks())
        digest = hashlib.sha256(self.header)
        with (folder / self.name).open("wb") as file, closing(in_order(jobs, threads or cores())) as results:
            file.write(self.header)
            advance(len(self.header))
            for result in results:
                file.write(result.data)
                digest.update(result.data)
                advance(result.size)
        return digest.hexdigest()


def unlike(file: GgufFile, default: str) -> dict[str, str]:
    """Tensor → type, where it is not the default."""
    return {entry.name: entry.type for entry in file.tensors if entry.type != default}


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
