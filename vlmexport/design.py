"""``vlmexport new``: a checkpoint of any vision encoder, projector and language model, with random weights.

What it costs on a phone does not depend on what it has learned: every other command takes such a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmexport.artifact.staging import staged
from vlmexport.checkpoint import LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.checkpoint.layouts import design as layout
from vlmexport.checkpoint.locate import demo_folder
from vlmexport.console import QUIET, Console
from vlmexport.model import plugins

if TYPE_CHECKING:
    import torch

TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
"""Files of the demo's tokenizer, of 1,536 pieces, which every design takes."""

DTYPE = "float16"
_BYTES = 2
MARK = "design.json"
"""What a checkpoint was made from, and what tells its folder from others."""

_SHARD = 1_000_000_000
"""Bytes of weights that are made, and held, at a time."""

_NOISE = 4
"""Pictures of noise that batch norms are measured on."""


@dataclass(frozen=True)
class Design:
    """``kind`` or ``kind:variant`` of a vision encoder and a language model, the kind of a projector."""

    vision: str
    projector: str
    language: str
    image_size: int | None = None
    seed: int = 0


def specify(design: Design, name: str = "design") -> Spec:
    """The Spec of a design.

    Raises:
        Unsupported: an unknown kind or variant, or parts that do not fit; the message says what does.
    """
    vision, language = vision_of(design.vision, design.image_size), language_of(design.language)
    spec = Spec(
        name=name,
        layout="design",
        vision=vision,
        projector=ProjectorSpec(design.projector, vision.hidden_size, language.hidden_size, vision.num_patches),
        language=language,
        prompt=PromptSpec(),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        torch_dtype=DTYPE,
    )
    plugins.projector(spec.projector).build(spec.projector)  # says what does not fit
    plugins.check_positions(spec)
    return spec


def vision_of(text: str, image_size: int | None = None) -> VisionSpec:
    """The Spec of ``kind`` or ``kind:variant``.

    Raises:
        Unsupported: either is unknown, or it cannot take images of that size.
    """
    kind, _, variant = text.partition(":")
    return plugins.encoder(kind).preset(kind, variant, image_size)


def language_of(text: str) -> LanguageSpec:
    """The Spec of ``kind`` or ``kind:variant``.

    Raises:
        Unsupported: either is unknown.
    """
    kind, _, variant = text.partition(":")
    return plugins.decoder(kind).preset(variant)


def create(design: Design, folder: Path, *, force: bool = False, console: Console = QUIET) -> Spec:
    """Write a design's checkpoint; the same design and seed give the same bytes on a machine.

    Args:
        force: replace a checkpoint of a design that is there.

    Raises:
        Unsupported: as ``specify``.
        UsageError: the folder exists, or there is no room for it.
    """
    import torch

    spec = specify(design, folder.resolve().name)
    shapes = _shapes(spec)
    total = sum(_BYTES * value.numel() for value in shapes.values())
    random = torch.Generator().manual_seed(design.seed)
    with staged(folder, force, total, MARK) as new, console.progress("writing weights", total, "bytes") as advance:
        for name, document in (("config.json", layout.config(spec)), (MARK, asdict(design))):
            _write_json(new / name, document)
        for name in TOKENIZER:
            shutil.copyfile(demo_folder() / name, new / name)
        for size in _write(new, shapes, _weights(spec, shapes, random)):
            advance(size)
    return spec


def _shapes(spec: Spec) -> dict[str, torch.Tensor]:
    """Published name → a tensor of its shape, on the meta device."""
    from vlmexport.model.vlm import VLM

    found = {name: value.to("meta") for name, value in VLM(spec).state_dict().items()}
    if spec.language.tie_word_embeddings:
        found.pop("language.lm_head.weight", None)
    return found


def _weights(
    spec: Spec, shapes: dict[str, torch.Tensor], random: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Encoder and projector as a whole, because norms are measured in it, the language model tensor by tensor."""
    from vlmexport.model.random_weights import random_weight

    yield from _encoder_weights(spec, random).items()
    norm = getattr(plugins.language(spec.language), "RANDOM_NORM", 1.0)
    for name, like in shapes.items():
        if name.startswith("language."):
            yield name, random_weight(name, like, random, norm)


def _encoder_weights(spec: Spec, random: torch.Generator) -> dict[str, torch.Tensor]:
    import torch

    from vlmexport.model.random_weights import measure_statistics, randomise
    from vlmexport.model.vlm import VLM

    vlm = VLM(spec, ("vision", "projector"))
    randomise(vlm, random)
    vlm.eval()
    side = spec.vision.image_size
    noise = torch.randn(_NOISE, 3, side, side, generator=random)
    measure_statistics(vlm, lambda: vlm.tokens(vlm.features(noise)))
    return vlm.state_dict()


def _write(folder: Path, shapes: dict[str, torch.Tensor], weights: Iterator[tuple[str, torch.Tensor]]) -> Iterator[int]:
    """Write weights as float16, in shards where they are large.

    Yields:
        Bytes of each tensor.
    """
    import torch
    from safetensors.torch import save_file

    shards = _shards(shapes)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names if len(shards) > 1 else ["model.safetensors"], shards, strict=True):
        state = {}
        for key in shard:
            found, value = next(weights)
            assert found == key
            state[key] = value.to(torch.float16).contiguous()
            yield _BYTES * value.numel()
        save_file(state, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8", newline="\n")


def _shards(shapes: dict[str, torch.Tensor]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    size = 0
    for name, value in shapes.items():
        if found[-1] and size + _BYTES * value.numel() > _SHARD:
            found.append([])
            size = 0
        found[-1].append(name)
        size += _BYTES * value.numel()
    return found
