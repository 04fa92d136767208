"""The Specs of FastVLM's tower and projector, whichever layout they are published in."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from vlmexport.checkpoint.spec import ImageProcessorSpec, LanguageSpec, ProjectorSpec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.bundles import Clients
from vlmexport.families.reading.fastvit_tensors import SIZES, variant_of
from vlmexport.families.reading.image_processor import read_image_processor
from vlmexport.families.reading.published import Published

SIDE = 1024
"""Pixels along one side of the published images."""

CLIENTS = Clients(changes={"config.json": {"architectures": ["LlavaQwen2ForCausalLM"]}})
"""transformers.js has a class of this name, which opens no bundle that names another one; its class of any LLaVA, and
the one that finds a class, open this."""

_STRIDE = 64
"""Pixels along one side of what becomes one feature."""

_BRANCH = re.compile(r"\.(conv_kxk|conv_scale|identity|large_conv|small_conv|pos_enc)\.")
"""In timm's names: what training alone has. Apple's code and transformers' config build the merged form and train that;
a tower with branches is one that somebody built otherwise."""


def tower(published: Published, side: int, width: Any) -> VisionSpec:
    """FastViT, of the size that its tensors have.

    Args:
        side: pixels along one side of an image.
        width: of the features, as the config says it; None where it does not.

    Raises:
        CheckpointError: config and tensors differ.
        Unsupported: a size or a form that is not known, or images that do not divide.
    """
    if any(_BRANCH.search(name) for name in published.shapes["vision"]):
        refuse_branches(str(published.path))
    variant = variant_of(published.shapes["vision"], str(published.path))
    features = SIZES[variant].features
    if width not in (None, features):
        raise CheckpointError(
            f"{published.file}: features are {width} wide, the tensors say {features}",
            "config and weights belong to different models: fix one of them",
        )
    if side < _STRIDE or side % _STRIDE:
        raise Unsupported(f"{published.path}: images of {side} pixels do not divide", f"known: multiples of {_STRIDE}")
    return VisionSpec("fastvit", side, _STRIDE, features, 0, 0, 0, "gelu", select_layer=0, variant=variant)


def refuse_branches(where: str) -> NoReturn:
    """Refuse a tower in the form for training.

    Raises:
        Unsupported: always.
    """
    raise Unsupported(
        f"{where}: a FastViT with the branches that training alone has is not known",
        "merge them, and save the model again: timm.utils.reparameterize_model does so",
    )


def image_processor(published: Published, side: int | None, pads: bool | None) -> ImageProcessorSpec:
    """The checkpoint's own; where it has none, one that makes pixels from 0 to 1.

    Args:
        side: pixels along one side of an image, None where the processor says.
        pads: whether pictures are padded to a square, else their middle is cut out; None where the processor says.

    Raises:
        CheckpointError: it is garbled, or makes images of another size.
        Unsupported: it makes pixels in a way that is not known.
    """
    found = read_image_processor(published.path)
    if found is None:
        return ImageProcessorSpec.square(side or SIDE, bool(pads), image_mean=(0.0,) * 3, image_std=(1.0,) * 3)
    return published.image_processor(found.side if side is None else side, pads)


def projector(encoder: VisionSpec, decoder: LanguageSpec, kind: str) -> ProjectorSpec:
    """From features to visual tokens."""
    return ProjectorSpec(kind, encoder.hidden_size, decoder.hidden_size, encoder.num_patches)
