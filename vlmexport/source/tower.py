"""A vision tower in a folder of its own: CLIP as OpenAI publishes it, for checkpoints that do not carry theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_config, section
from vlmexport.checkpoint.hub import download, is_hub_id, pinned
from vlmexport.checkpoint.quantized import refuse_quantized
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors, weight_files
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.defaults import filled

_TEXT = ("text_model.", "text_projection", "visual_projection", "logit_scale")
"""Tensors of CLIP's other half, which no vision-language model uses."""


@dataclass(frozen=True)
class Tower:
    """A tower's folder: ``origin`` finds it again, ``config`` is in the terms of ``CLIPVisionConfig``."""

    path: Path
    origin: str
    config: dict[str, Any]
    tensors: dict[str, LazyTensor] = field(repr=False)

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold its weights."""
        return weight_files(self.path)


def find_tower(named: str | None, given: str | None, checkpoint: Path, console: Console = QUIET) -> Tower:
    """Open the tower of a checkpoint that has none inside.

    Args:
        named: what the checkpoint's config names: a folder, from the checkpoint's own or from here, or a Hub id.
        given: ``--vision-tower``, which goes before it.

    Raises:
        CheckpointError: it is nowhere, or it is damaged; the message says what to pass.
        Unsupported: it is no CLIP.
    """
    if given is not None:
        path = Path(given)
        if path.exists():
            return _open(path, str(path.resolve()))
        if is_hub_id(given):
            return _fetched(given, console, "the vision tower")
        raise CheckpointError(f"--vision-tower {given} does not exist", "pass the folder of a CLIP vision tower")
    cure = "pass the tower's folder with --vision-tower DIR"
    if named is None:
        raise CheckpointError(f"{checkpoint} holds no vision tower, and its config names none", cure)
    for path in _candidates(named, checkpoint):
        if path.is_dir():
            return _open(path, str(path.resolve()))
    if not is_hub_id(named):
        raise CheckpointError(f"{checkpoint} holds no vision tower, and {named} does not exist", cure)
    try:
        return _fetched(named, console, f"the vision tower that {checkpoint / 'config.json'} names")
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint} holds no vision tower: {error.what}", f"{error.cure}; or {cure}"
        ) from error


def _fetched(hub_id: str, console: Console, what: str) -> Tower:
    folder = download(hub_id, console, what)
    return _open(folder, pinned(hub_id, folder))


def _candidates(named: str, checkpoint: Path) -> Iterator[Path]:
    yield checkpoint / named
    yield Path(named)


def _open(path: Path, origin: str) -> Tower:
    config = read_config(path)
    kind, file = config.get("model_type"), path / "config.json"
    if kind not in ("clip", "clip_vision_model"):
        raise Unsupported(f"{file}: a tower of type {kind!r} is not known", "known: clip, clip_vision_model")
    inside = section(config, "vision_config", file) if kind == "clip" else config
    tensors = {}
    found = open_tensors(path)
    refuse_quantized(path, found)
    for name, tensor in found.items():
        if not name.startswith(_TEXT):
            tensors[name.removeprefix("vision_model.")] = tensor
    return Tower(path, origin, filled(inside or {}, "clip_vision_model"), tensors)
