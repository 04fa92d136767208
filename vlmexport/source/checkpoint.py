"""Open a checkpoint: its layout, its Spec, and its tensors sorted into vision, projector and language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlmexport import families
from vlmexport.checkpoint import sizes
from vlmexport.checkpoint.about import About, read_about
from vlmexport.checkpoint.documents import read_config, whole
from vlmexport.checkpoint.hashes import hash_file
from vlmexport.checkpoint.hub import name_of
from vlmexport.checkpoint.preprocessor import read_pixels
from vlmexport.checkpoint.quantized import refuse_quantized
from vlmexport.checkpoint.settings import Settings
from vlmexport.checkpoint.shards import check_index
from vlmexport.checkpoint.snapshots import repository
from vlmexport.checkpoint.spec import ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors, weight_files
from vlmexport.checkpoint.twice import refuse_stale
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.families import Layout
from vlmexport.processing.tokenizer import Tokenizer
from vlmexport.processing.tokenizer_files import open_tokenizer
from vlmexport.source.shapes import check_parts
from vlmexport.source.tower import Tower, find_tower

COMPONENTS = ("vision", "projector", "language")
_SKIPPED = ("rotary_emb.inv_freq", "embeddings.position_ids", "num_batches_tracked")
"""Buffers that older versions saved and that follow from the config; what batch norms count while they are trained."""

_WRAPPERS = ("module.", "_orig_mod.")
"""Of PyTorch's data parallelism and DeepSpeed, and of torch.compile."""

Sorted = dict[str, dict[str, LazyTensor]]


@dataclass
class Checkpoint:
    """A checkpoint folder, opened: its Spec, and its tensors by component under canonical names.

    Canonical names are those of transformers' ``CLIPVisionModel`` (vision), of the published projector after
    ``model.mm_projector.`` (projector), and of the module of the language model's kind. ``tower`` is the folder of a
    tower that the checkpoint does not carry itself; ``image_token`` the id that its config gives ``<image>``.
    """

    path: Path
    origin: str
    spec: Spec
    config: dict[str, Any]
    tensors: Sorted = field(repr=False)
    tower: Tower | None = None
    image_token: int | None = None

    @property
    def found_at(self) -> tuple[str, str | None]:
        """What ``open_model`` takes to open it again."""
        return self.origin, self.tower.origin if self.tower else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            CheckpointError: it is missing or damaged, or has more pieces than the embedding has rows.
            Unsupported: a kind of tokenizer that is not known.
        """
        rows = self.spec.language.vocab_size
        return open_tokenizer(self.path, rows, self.spec.prompt, self.image_token)

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
    name, layout = families.find(config, file)
    settings = layout.settings(config, file)
    tensors = _sort(path, layout)
    tower = None
    if not all(tensors.values()):
        refuse_stale(path, tensors)
    if not tensors["vision"]:
        tower = find_tower(settings.tower, vision_tower, path, console)
        tensors["vision"] = {key: value for key, value in tower.tensors.items() if not key.endswith(_SKIPPED)}
    elif vision_tower is not None:
        raise UsageError(f"{path} carries its own vision tower, which is the one to use", "leave out --vision-tower")
    for component in COMPONENTS:
        if not tensors[component]:
            raise CheckpointError(f"{path} holds no {component} tensors", "pass a merged checkpoint with all three")
    vision = _vision(settings, tensors["vision"], tower, path)
    spec = _spec(origin, name, settings, vision, path)
    try:
        check_parts(spec, tensors, str(path))
    except CheckpointError:
        refuse_stale(path, tensors)
        raise
    if spec.language.tie_word_embeddings:
        tensors["language"].pop("lm_head.weight", None)  # the embedding counts, whatever was saved beside it
    return Checkpoint(path, origin or str(path.resolve()), spec, config, tensors, tower, settings.image_token)


def _sort(path: Path, layout: Layout) -> Sorted:
    found: Sorted = {component: {} for component in COMPONENTS}
    tensors = open_tensors(path)
    refuse_quantized(path, tensors)
    check_index(path, tensors)
    for name, tensor in _unwrapped(tensors).items():
        if name.endswith(_SKIPPED):
            continue
        component, canonical = layout.place(name)
        if canonical in found[component]:
            raise CheckpointError(f"{path} holds {canonical} ({component}) twice", "remove one of the two")
        found[component][canonical] = tensor
    return found


def _unwrapped(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Names without what a wrapper has put before all of them."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _vision(settings: Settings, tensors: dict[str, LazyTensor], tower: Tower | None, path: Path) -> VisionSpec:
    """A tower in its own folder is told by that folder's config; pixels too, unless the checkpoint says."""
    if settings.encoder is not None:
        return settings.encoder
    pixels = read_pixels(path)
    if tower is None:
        return sizes.vision(settings, settings.vision, tensors, pixels, path / "config.json")
    if pixels.mean is None:
        pixels = read_pixels(tower.path)
    return sizes.vision(settings, tower.config, tensors, pixels, tower.path / "config.json")


def _spec(origin: str | None, layout: str, settings: Settings, vision: VisionSpec, path: Path) -> Spec:
    text = settings.text
    language = settings.language or sizes.llama(text, path / "config.json")
    return Spec(
        name=name_of(origin or repository(path) or str(path.resolve())),
        layout=layout,
        vision=vision,
        projector=ProjectorSpec(settings.projector, vision.hidden_size, language.hidden_size, vision.num_patches),
        language=language,
        prompt=PromptSpec(image_start="<im_start>", image_end="<im_end>") if settings.marks else PromptSpec(),
        bos_token_id=_id(text, "bos_token_id", 1, path),
        eos_token_id=_id(text, "eos_token_id", 2, path),
        pad_token_id=text.get("pad_token_id") if isinstance(text.get("pad_token_id"), int) else None,
        torch_dtype=str(text.get("torch_dtype") or text.get("dtype") or "float16"),
    )


def _id(text: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    """A token id; the first where a config lists several, the default where it is absent or null.

    Raises:
        CheckpointError: it is no number.
    """
    value = text.get(key)
    first = value[0] if isinstance(value, list) and value else value
    try:
        return whole({key: first}, key, default)
    except TypeError as error:
        raise CheckpointError(f"{path / 'config.json'} garbles {error}", "use the published config.json") from error
