"""A model with the widths of another one but few layers and random weights: what tracing needs, whatever the size."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from vlmexport.checkpoint.spec import Spec
from vlmexport.model import plugins
from vlmexport.model.random_weights import measure_statistics, randomise
from vlmexport.model.vlm import VLM
from vlmexport.source.checkpoint import COMPONENTS

VOCABULARY = 64
"""Tokens of a sketch: nothing but the output layer's width depends on their number."""


def prefix(spec: Spec, component: str) -> str:
    """What comes before a layer's number in the parameter paths of a component of ``VLM`` that is a stack of layers."""
    if component == "vision":
        return f"vision.{plugins.vision(spec.vision).layers(spec.vision)}"
    return f"{component}.{plugins.language(spec.language).LAYERS}"


def cut(spec: Spec, layers: int) -> Spec:
    """The same Spec with at most ``layers`` layers in its vision encoder and in its language model, and few tokens.

    Of the vision encoder the layers after the selected one are left out first: they are never computed.
    """
    used = min(spec.vision.used_layers, layers)
    vision = replace(spec.vision, num_layers=used, select_layer=used)
    few = min(spec.language.vocab_size, VOCABULARY)
    language = replace(spec.language, num_layers=min(spec.language.num_layers, layers), vocab_size=few)
    return replace(spec, vision=vision, language=language)


def sketch(spec: Spec, layers: int, components: tuple[str, ...] = COMPONENTS) -> VLM:
    """A ``VLM`` with at most ``layers`` layers, of the components that are asked for, with random weights."""
    vlm = VLM(cut(spec, layers), components)
    random = torch.Generator().manual_seed(0)
    for component in components:
        randomise(cast(nn.Module, getattr(vlm, component)), random)
    if "language" in components and spec.language.tie_word_embeddings:
        vlm.language.tie_weights()  # type: ignore[operator]
    vlm.eval().requires_grad_(False)
    if "vision" in components:
        side = spec.vision.image_size
        noise = torch.randn(2, 3, side, side, generator=random)
        measure_statistics(vlm.vision, lambda: vlm.features(noise))
    if "projector" in components:
        shape = (2, spec.projector.in_tokens, spec.projector.in_features)
        measure_statistics(vlm.projector, lambda: vlm.tokens(torch.randn(shape, generator=random)))
    return vlm
