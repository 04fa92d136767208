"""Folders that hold weights twice: the safetensors are read, and may be older than the ``.bin`` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlmexport.checkpoint.tensors import LazyTensor, open_files, weight_sets
from vlmexport.errors import CheckpointError

_BUFFERS = ("_ids", "rotary_emb.inv_freq")
"""Ends of what older versions saved beside the weights, and newer ones leave out."""


def refuse_stale(folder: Path, components: Mapping[str, Mapping[str, LazyTensor]]) -> None:
    """Raise where the weights that were not read hold tensors that those that were read lack; for when some are
    missing.

    Args:
        components: what was read.

    Raises:
        CheckpointError: they do; the message names both files.
    """
    first, *others = weight_sets(folder)
    read = {tensor.name for tensors in components.values() for tensor in tensors.values()}
    for other in others:
        try:
            more = sorted(name for name in open_files(other) if name not in read and not name.endswith(_BUFFERS))
        except CheckpointError:
            continue  # what cannot be read is not what is missing
        if more:
            raise CheckpointError(
                f"{folder} holds weights twice: {first[0].name} is read, and lacks {len(more)} tensors of "
                f"{other[0].name} ({more[0]})",
                f"if {first[0].name} is the older one, move it and its index away",
            )
