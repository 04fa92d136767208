"""Tensors spread over files: which go together, and does an index say where they are?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vlmexport.checkpoint.documents import read_object
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import CheckpointError


def shards(sizes: Iterable[tuple[str, int]], most: int) -> list[list[str]]:
    """Names with their bytes, in order, in parts of ``most`` bytes; what is larger has a part of its own. No names are
    one empty part."""
    parts: list[list[str]] = [[]]
    held = 0
    for name, size in sizes:
        if parts[-1] and held + size > most:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return parts


def check_index(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Compare the index of a checkpoint folder, where it has one, with its shards.

    Raises:
        CheckpointError: a tensor that the index names lies in another shard, or in none.
    """
    kinds = {tensor.path.suffix for tensor in tensors.values()}
    name = "model.safetensors.index.json" if kinds == {".safetensors"} else "pytorch_model.bin.index.json"
    if not (folder / name).is_file():
        return
    for tensor, shard in read_object(folder / name)["weight_map"].items():
        found = tensors.get(tensor)
        if found is None:
            raise CheckpointError(f"{folder / name}: {shard} does not hold {tensor}", "download the shard again")
        if found.path.name != Path(shard).name:
            raise CheckpointError(
                f"{folder / name}: {tensor} is said to be in {shard}, it is in {found.path.name}",
                "the index belongs to other shards: download it again",
            )
