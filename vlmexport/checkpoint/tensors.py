"""Tensors that stay on disk until they are asked for. Nothing here needs torch, except to look into a ``.bin``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

import numpy as np
import numpy.typing as npt

from vlmexport.checkpoint.archive import refuse_bomb
from vlmexport.checkpoint.documents import LARGEST, read_bounded
from vlmexport.checkpoint.no_weights import no_weights
from vlmexport.checkpoint.substitutes import refuse_substitute
from vlmexport.errors import CheckpointError, Unsupported, first_line

if TYPE_CHECKING:
    import torch

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

DTYPES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1, "bool": 1}
"""Types of a checkpoint's tensors → bytes of a value."""

OFFSET = "_checkpoint_offset"
"""Of a storage on the device ``meta``: the place of its values in the file. torch does not promise it."""

_CURE = "it is probably truncated: download or copy it again"


_BLOCK = 1 << 22
"""Values that are compared at a time."""


@dataclass(frozen=True)
class LazyTensor:
    """A contiguous tensor of a checkpoint: what it is, and where its values lie.

    ``dtype`` is a key of ``DTYPES`` where its values can be read (``quantized`` refuses weights of other types, and of
    whole numbers), ``offset`` the place of its first byte in the file. Reading takes no more memory than what is
    returned, and any number of threads may read at a time.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * DTYPES[self.dtype]

    @property
    def columns(self) -> int:
        """Length of the last dimension; 1 for a single value."""
        return self.shape[-1] if self.shape else 1

    def read_into(self, buffer: U8, start: int = 0) -> U8:
        """Fill ``buffer`` (contiguous) with the bytes of values from value ``start`` on; it is returned.

        Raises:
            CheckpointError: the file is shorter than it was, or gone.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * DTYPES[self.dtype])
                view, done = buffer.data, 0
                while done < len(view) and (read := file.readinto(view[done:])):
                    done += read
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror})", "check the disk") from error
        if done < buffer.size:
            raise CheckpointError(f"{self.path} ends inside of {self.name}", _CURE)
        return buffer

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Some rows of its first dimension: ``stop`` is the first that is left out."""
        width = self.numel // self.shape[0] * DTYPES[self.dtype]
        return replace(self, shape=(stop - start, *self.shape[1:]), offset=self.offset + start * width)

    def reshaped(self, shape: tuple[int, ...]) -> LazyTensor:
        """The same values in another shape."""
        assert prod(shape) == self.numel
        return replace(self, shape=shape)

    def torch(self) -> torch.Tensor:
        """The values in their own type, mapped from the file: memory is taken where they are touched, and shared."""
        import torch

        kind = getattr(torch, _TORCH[self.dtype])
        if not self.numel:
            return torch.empty(self.shape, dtype=kind)
        mapped = np.memmap(self.path, np.uint8, "c", self.offset, (self.nbytes,))
        return torch.frombuffer(mapped, dtype=kind).reshape(self.shape)


_TORCH = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32",
    "i16": "int16", "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip


def same_values(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors hold the same values, in whatever types; they are read block by block."""
    if one.shape != other.shape:
        return False
    for start in range(0, one.numel, _BLOCK):
        count = min(_BLOCK, one.numel - start)
        first, second = (
            to_float32(tensor.read_into(np.empty(count * DTYPES[tensor.dtype], np.uint8), start), tensor.dtype)
            for tensor in (one, other)
        )
        if not np.array_equal(first, second, equal_nan=True):
            return False
    return True


def to_float32(raw: U8, dtype: str) -> F32:
    """u8 bytes of values of ``dtype`` → f32, one dimension."""
    if dtype == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(_TORCH[dtype]).astype(np.float32, copy=False)


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint folder, by their published names.

    Raises:
        CheckpointError: no weight file, a shard that is missing, truncated or outside of the folder; or a file that
            would take more memory than its size says.
        Unsupported: a torch that does not tell where a ``.bin`` holds its values.
    """
    return open_files(weight_files(folder))


def open_files(paths: Iterable[Path]) -> dict[str, LazyTensor]:
    """All tensors of some weight files; errors as ``open_tensors``."""
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        refuse_substitute(path)
        tensors.update(_open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path))
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder that are read: safetensors where there are some.

    Raises:
        CheckpointError: there are none.
    """
    for paths in weight_sets(folder):
        return paths
    raise no_weights(folder)


def weight_sets(folder: Path) -> Iterator[list[Path]]:
    """The weights of a folder, once as safetensors and once as ``.bin``: an index's shards, else a single file."""
    for index_name, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        index = folder / index_name
        if index.is_file():
            yield _shards(index)
        elif (folder / single).is_file():
            yield [folder / single]


def _shards(index: Path) -> list[Path]:
    refuse_substitute(index)
    try:
        weight_map: Mapping[str, str] = json.loads(read_bounded(index))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of shards", "download it again") from error
    root = index.parent.resolve()
    paths = []
    for name in map(str, names):
        path = (root / name).absolute()
        if not path.is_relative_to(root) or ".." in Path(name).parts:
            raise CheckpointError(
                f"{index} names a shard outside of its folder: {name}", "do not trust this checkpoint"
            )
        if not path.is_file():
            raise CheckpointError(f"{index} names a shard that is missing: {name}", "download it again")
        paths.append(path)
    return paths


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """safetensors itself checks the header against the file; the offsets are then read from it."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LARGEST:
            raise ValueError(f"a header of {length} bytes")
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({str(error).strip()})", _CURE) from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, dtype = 8 + length + entry["data_offsets"][0], str(entry["dtype"]).lower()
        tensors[name] = LazyTensor(name, tuple(entry["shape"]), dtype, path, begin)
    return tensors


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    """Only names, shapes and places are loaded (``map_location="meta"``), by a reader that runs no code."""
    import torch

    cure = "it is damaged, or it contains code; nothing of it was run. Use safetensors"
    try:
        refuse_bomb(path)
        with catch_warnings(action="ignore"):
            state = torch.load(path, map_location="meta", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{path} cannot be loaded safely ({first_line(error)})", cure) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state dict", "save the state dict alone")
    names, size = {kind: name for name, kind in _TORCH.items()}, path.stat().st_size
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor", "save the state dict alone")
        kind, width = str(value.dtype).removeprefix("torch."), value.element_size()
        storage = getattr(value.untyped_storage(), OFFSET, None)
        if storage is None:
            raise Unsupported(f"torch {torch.__version__} does not say where {path} holds {name}", "use safetensors")
        if not value.is_contiguous():
            raise CheckpointError(f"{path}: {name} is not stored in one piece", "save it anew, as safetensors")
        begin = storage + value.storage_offset() * width
        if begin + value.numel() * width > size:
            raise CheckpointError(f"{path} ends inside of {name}", _CURE)
        tensors[name] = LazyTensor(name, tuple(value.shape), names.get(kind, kind), path, begin)
    return tensors
