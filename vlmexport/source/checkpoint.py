"""Open a checkpoint: its layout, its Spec, and its tensors sorted into vision, projector and language."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vlmexport import families
from vlmexport.checkpoint.about import About, read_about
from vlmexport.checkpoint.adapters import refuse_adapter
from vlmexport.checkpoint.documents import read_config
from vlmexport.checkpoint.hashes import hash_file
from vlmexport.checkpoint.hub import name_of
from vlmexport.checkpoint.image_text import token_of
from vlmexport.checkpoint.quantized import refuse_quantized
from vlmexport.checkpoint.shards import check_index
from vlmexport.checkpoint.snapshots import repository
from vlmexport.checkpoint.spec import ImageProcessorSpec, Spec
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors, same_values, weight_files
from vlmexport.checkpoint.twice import refuse_stale
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.families import Family, Sorted
from vlmexport.families.reading.published import Published, TowerFolder
from vlmexport.processing.image import cutting
from vlmexport.processing.prompt_builder import CheckpointPrompts
from vlmexport.processing.tokenizer import Tokenizer
from vlmexport.processing.tokenizer_files import ExtraTokens, open_tokenizer
from vlmexport.source.shapes import check_parts
from vlmexport.source.tokenizer import tokenizer_folder
from vlmexport.source.tower import Tower, find_tower

COMPONENTS = ("vision", "projector", "language")
_SKIPPED = ("rotary_emb.inv_freq", "embeddings.position_ids", "num_batches_tracked")
"""Buffers that older versions saved and that follow from the config; what batch norms count while they are trained."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Of PyTorch's data parallelism and DeepSpeed, and of torch.compile."""


class FoundAt(NamedTuple):
    """What opens a checkpoint again, in another process too (``locate.open_again``)."""

    model: str
    vision_tower: str | None
    max_views: int | None


@dataclass(frozen=True)
class Budget:
    """How many views a picture may have, and how its checkpoint's own files cut it."""

    views: int
    without: ImageProcessorSpec


@dataclass
class Checkpoint:
    """A checkpoint folder, opened: its Spec, and its tensors by component under canonical names.

    Canonical names are those of transformers' ``CLIPVisionModel`` (vision), of the published projector after
    ``model.mm_projector.`` (projector), and of the module of the language model's kind. ``tower`` is the folder of a
    tower that the checkpoint does not carry itself, ``tokenizer_folder`` where its tokenizer's files are. ``budget`` is
    what its image processor was brought within; None where that is as its files say.
    """

    path: Path
    origin: str
    spec: Spec
    family: Family
    config: dict[str, Any]
    tensors: Sorted = field(repr=False)
    tokenizer_folder: Path
    tower: Tower | None = None
    budget: Budget | None = None

    def within(self, max_views: int | None) -> Checkpoint:
        """The same, of no picture more than so many views; itself where that is so, or None is said.

        Raises:
            UsageError: it sees every picture as one view.
        """
        known = self.spec.image_processor
        cuts = cutting(known)
        if max_views is None or (fewer := cuts.within(known, max_views)) == known:
            return self
        return replace(self, spec=replace(self.spec, image_processor=fewer), budget=Budget(max_views, known))

    @property
    def pixels(self) -> dict[str, Any]:
        """Keys that take the place of those in its image processor's file."""
        spec = self.spec.image_processor
        return cutting(spec).told(spec) if self.budget else {}

    @property
    def found_at(self) -> FoundAt:
        """How to open it again."""
        tower, views = self.tower.origin if self.tower else None, self.budget.views if self.budget else None
        return FoundAt(self.origin, tower, views)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            CheckpointError: it is missing or damaged, or has more pieces than the embedding has rows.
            Unsupported: a kind of tokenizer that is not known.
        """
        spec, rows, marker = self.spec, self.spec.language.vocab_size, token_of(self.spec.image_text)
        extra = ExtraTokens(spec.extra_tokens, spec.image_token)
        return open_tokenizer(self.tokenizer_folder, rows, spec.prompt, spec.image_token_id, extra, marker)

    @cached_property
    def prompts(self) -> CheckpointPrompts:
        """What makes its prompts; raises what ``tokenizer`` does."""
        return CheckpointPrompts(self.spec, self.tokenizer, str(self.path))

    @cached_property
    def about(self) -> About:
        """Licence, base model and sampling, as far as the checkpoint says."""
        return read_about(self.path, self.origin, self.config)

    @property
    def weight_files(self) -> dict[str, Path]:
        """The files that hold the weights, under names that stay the same wherever the folders lie."""
        files = {path.name: path for path in weight_files(self.path)}
        if self.tower is not None:
            files |= {f"vision_tower/{path.name}": path for path in self.tower.weight_files}
        return files

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """File name → BLAKE3 of the weights. Every byte of them is read, once."""
        return {name: hash_file(path) for name, path in self.weight_files.items()}

    def parameters(self, component: str) -> int:
        """Number of values in a component."""
        return sum(tensor.numel for tensor in self.tensors[component].values())


def open_checkpoint(
    path: Path, origin: str | None = None, vision_tower: str | None = None, console: Console = QUIET
) -> Checkpoint:
    """Open a checkpoint folder in a published layout; reads no weights, but checks every name and shape of them.

    Args:
        origin: how to find it again (a Hub id with its commit, ``demo``); its absolute path where it is None.
        vision_tower: folder or Hub id of the tower, for a checkpoint that has none inside. Where it has one this is
            an error and no replacement: a fine-tuned tower must not be lost, nor a user believe that his was taken.

    Raises:
        CheckpointError: not a folder, not a checkpoint, damaged, or it contradicts itself.
        UsageError: a tower is passed to a checkpoint that has its own.
        Unsupported: a model type, a setting or a tensor that is not known.
    """
    config = read_config(path)
    file = path / "config.json"
    family = families.find(config, file)
    tensors = _sort(path, family)
    tower = None
    if not all(tensors.values()):
        refuse_stale(path, tensors)
    if not tensors["vision"]:
        tower = find_tower(family.tower(config), vision_tower, path, console)
        tensors["vision"] = {key: value for key, value in tower.tensors.items() if not key.endswith(_SKIPPED)}
    elif vision_tower is not None:
        raise UsageError(f"{path} carries its own vision tower, which is the one to use", "leave out --vision-tower")
    for component in COMPONENTS:
        if not tensors[component]:
            raise CheckpointError(f"{path} holds no {component} tensors", "pass a merged checkpoint with all three")
    words = tokenizer_folder(families.tokenizer(family, config), path, console)
    spec = family.spec(Published(
        path=path,
        tokenizer=words,
        name=name_of(origin or repository(path) or str(path.resolve())),
        config=config,
        shapes={part: {key: tensor.shape for key, tensor in found.items()} for part, found in tensors.items()},
        tower=TowerFolder(tower.path, tower.config) if tower else None,
    ))  # fmt: skip
    try:
        check_parts(spec, tensors, str(path))
    except CheckpointError:
        refuse_stale(path, tensors)
        raise
    spec = _with_head(spec, tensors["language"])
    return Checkpoint(path, origin or str(path.resolve()), spec, family, config, tensors, words, tower)


def _with_head(spec: Spec, language: dict[str, LazyTensor]) -> Spec:
    """A head that is the embedding over again is left out; one that differs is a head of its own, whatever the config
    says: so transformers 5 loads it."""
    head, table = language.get("lm_head.weight"), language.get("model.embed_tokens.weight")
    if not spec.language.tie_word_embeddings or head is None:
        return spec
    if table is not None and not same_values(head, table):
        return replace(spec, language=replace(spec.language, tie_word_embeddings=False))
    del language["lm_head.weight"]
    return spec


def _sort(path: Path, family: Family) -> Sorted:
    found: Sorted = {component: {} for component in COMPONENTS}
    tensors = open_tensors(path)
    refuse_adapter(path, tensors)
    refuse_quantized(path, tensors)
    check_index(path, tensors)
    for name, tensor in _unwrapped(tensors).items():
        if name.endswith(_SKIPPED):
            continue
        placed = family.place(name)
        if placed is None:
            continue
        component, canonical = placed
        if canonical in found[component]:
            raise CheckpointError(f"{path} holds {canonical} ({component}) twice", "remove one of the two")
        found[component][canonical] = tensor
    return families.arranged(family, found)


def _unwrapped(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Names without what a wrapper has put before all of them."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors
