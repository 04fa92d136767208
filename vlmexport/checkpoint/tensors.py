"""Tensors that stay on disk until they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vlmexport.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor of a checkpoint: what it is without reading it, and how to read it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def numel(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def float(self) -> torch.Tensor:
        """The values as float32."""
        return self.load().to(torch.float32)


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a checkpoint folder, by their published names.

    Raises:
        CheckpointError: no weight file, a shard that is missing, truncated or outside of the folder.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in weight_files(folder):
        tensors.update(_open_safetensors(path) if path.suffix == ".safetensors" else _open_pickle(path))
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: an index's shards, else a single file; safetensors first."""
    for index_name, single in (
        ("model.safetensors.index.json", "model.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model.bin"),
    ):
        index = folder / index_name
        if index.is_file():
            return _shards(index)
        if (folder / single).is_file():
            return [folder / single]
    raise CheckpointError(
        f"{folder} has no weights",
        "expected model.safetensors, pytorch_model.bin or an index of shards beside config.json",
    )


def _shards(index: Path) -> list[Path]:
    try:
        weight_map: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards", "download it again") from error
    root = index.parent.resolve()
    paths = []
    for name in names:
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
    try:
        file: Any = safe_open(path, framework="pt")
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None:
                raise CheckpointError(f"{path}: tensor {name} has the type {part.get_dtype()}", "convert it to float16")
            tensors[name] = LazyTensor(name, tuple(part.get_shape()), dtype, _reader(path, name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged ({str(error).strip()})", "it is probably truncated: download or copy it again"
        ) from error
    return tensors


def _reader(path: Path, name: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    return read


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be loaded safely ({reason})",
            "it is damaged, or it contains code; nothing of it was run. Use safetensors",
        ) from error
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor", "save the state dict alone")
        tensors[name] = LazyTensor(name, tuple(value.shape), value.dtype, partial(torch.Tensor.detach, value))
    return tensors
