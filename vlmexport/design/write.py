"""``vlmexport new``: a checkpoint of any vision encoder, projector and language model.

Weights are random, or those of a model that a part is taken from. What a design costs on a phone does not depend on
what it has learned: every other command takes such a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmexport.artifact.bundle.staging import staged
from vlmexport.checkpoint.shards import shards
from vlmexport.checkpoint.spec import Spec
from vlmexport.console import QUIET, Console
from vlmexport.design.specify import Design, open_origin, specify, vision_of
from vlmexport.families import design as layout
from vlmexport.model import plugins
from vlmexport.processing.tokenizer_files import FILES
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import demo_folder

if TYPE_CHECKING:
    import torch

    from vlmexport.model.vlm import VLM

State = dict[str, "torch.Tensor"]
"""Published name → value."""

MARK = "design.json"
"""What a checkpoint was made from, and what tells its folder from others."""

_SHARD = 1_000_000_000
"""Bytes of weights that are made, and held, at a time."""

_PICTURES = 4
"""On which batch norms are measured."""


def create(design: Design, folder: Path, *, force: bool = False, console: Console = QUIET) -> Spec:
    """Write a design's checkpoint; the same design and seed give the same bytes on a machine.

    Args:
        force: replace a checkpoint of a design that is there.

    Raises:
        CheckpointError: the model that parts are taken from cannot be opened.
        Unsupported, UsageError: as ``specify``; the folder exists, or there is no room for it.
    """
    import torch

    origin = open_origin(design, console)
    spec = specify(design, folder.resolve().name, origin)
    _tell_size(design, spec, console)
    taken = _taken(design, origin)
    shapes = _shapes(spec, taken)
    total = sum(value.nbytes for value in shapes.values())
    random = torch.Generator().manual_seed(design.seed)
    with staged(folder, force, total, MARK) as new, console.progress("writing weights", total, "bytes") as advance:
        for name, document in (("config.json", layout.config(spec)), (MARK, asdict(design))):
            _write_json(new / name, document)
        words = demo_folder() if origin is None or design.named("language") else origin.path
        for file in filter(Path.is_file, (words / name for name in FILES)):
            shutil.copyfile(file, new / file.name)
        for size in _write(new, shapes, _weights(spec, shapes, taken, random)):
            advance(size)
    return spec


def _tell_size(design: Design, spec: Spec, console: Console) -> None:
    """Where the projector decided on the image size."""
    named = design.named("vision")
    own = vision_of(named).image_size if named and design.image_size is None else spec.vision.image_size
    if own != spec.vision.image_size:
        new, projector = spec.vision.image_size, spec.projector.kind
        console.note(f"images of {new} pixels: at {named}'s own {own}, features do not fit {projector}")


def _taken(design: Design, origin: Checkpoint | None) -> State:
    """The parts that are the origin's, mapped from its files."""
    if origin is None:
        return {}
    return {
        f"{component}.{name}": tensor.torch()
        for component, tensors in origin.tensors.items()
        if not design.named(component)
        for name, tensor in tensors.items()
    }


def _shapes(spec: Spec, taken: State) -> State:
    """Published name → a tensor of its shape and type, on the meta device."""
    import torch

    from vlmexport.model.vlm import VLM

    dtype = getattr(torch, spec.torch_dtype)
    found = {
        name: torch.empty_like(value, dtype=taken[name].dtype if name in taken else dtype, device="meta")
        for name, value in VLM(spec).state_dict().items()
    }
    if spec.language.tie_word_embeddings:
        found.pop("language.lm_head.weight", None)
    return found


def _weights(spec: Spec, shapes: State, taken: State, random: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Encoder and projector as a whole, because norms are measured in it, the language model tensor by tensor."""
    from vlmexport.model.random_weights import random_weight

    seeing = _seeing_weights(spec, taken, random)
    norm = getattr(plugins.language(spec.language), "RANDOM_NORM", 1.0)
    for name, like in shapes.items():
        if name in taken:
            yield name, taken[name]
        elif name in seeing:
            yield name, seeing[name]
        else:
            yield name, random_weight(name, like, random, norm)


def _seeing_weights(spec: Spec, taken: State, random: torch.Generator) -> State:
    """Encoder and projector: random weights of what is not taken, with norms measured behind what is."""
    from torch import nn

    from vlmexport.model.random_weights import measure_statistics, randomise
    from vlmexport.model.vlm import VLM

    vlm = VLM(spec, ("vision", "projector"))
    made = [part for name, part in vlm.named_children() if not _part(taken, name)]
    if not made:
        return {}
    randomise(vlm, random)
    for component in vlm.components:
        state = {name: value.float() for name, value in _part(taken, component).items()}
        vlm.load_state_dict(state, assign=True, strict=False)
    vlm.eval().requires_grad_(False)
    pixels = _pictures(vlm, bool(_part(taken, "vision")), random)
    measure_statistics(nn.ModuleList(made), lambda: vlm.tokens(vlm.features(pixels)))
    return vlm.state_dict()


def _part(state: State, component: str) -> State:
    return {name: value for name, value in state.items() if name.startswith(f"{component}.")}


def _pictures(vlm: VLM, trained: bool, random: torch.Generator) -> torch.Tensor:
    """f32 [views, 3, height, width]: of the calibration set for an encoder that has seen some, else noise."""
    import torch

    if trained:
        from vlmexport.calibrate import calibration_samples

        return torch.cat([vlm.pixels(sample.image()) for sample in calibration_samples(_PICTURES)])
    side = vlm.spec.vision.image_size
    return torch.randn(_PICTURES, 3, side, side, generator=random)


def _write(folder: Path, shapes: State, weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[int]:
    """Write weights in the types of ``shapes``, in shards where they are large.

    Yields:
        Bytes of each tensor.
    """
    from safetensors.torch import save_file

    parts = shards(((name, value.nbytes) for name, value in shapes.items()), _SHARD)
    names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for name, shard in zip(names if len(parts) > 1 else ["model.safetensors"], parts, strict=True):
        state = {}
        for key in shard:
            found, value = next(weights)
            assert found == key
            state[key] = value.to(shapes[key].dtype).contiguous()
            yield shapes[key].nbytes
        save_file(state, folder / name, metadata={"format": "pt"})
    if len(parts) > 1:
        weight_map = {key: name for name, shard in zip(names, parts, strict=True) for key in shard}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")
