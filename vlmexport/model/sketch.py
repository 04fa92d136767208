"""A model with the widths of another one but few layers and random weights: what tracing needs, whatever the size.

Random weights are distinct, so that no optimiser takes two of them for one, or a norm of ones for nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn

from vlmexport.checkpoint import Spec
from vlmexport.checkpoint.layout import COMPONENTS
from vlmexport.model import plugins
from vlmexport.model.vlm import VLM

VOCABULARY = 64
"""Tokens of a sketch: nothing but the output layer's width depends on their number."""


def prefix(spec: Spec, component: str) -> str:
    """What comes before a layer's number in the parameter paths of a component of ``VLM``."""
    plugin = plugins.vision(spec.vision) if component == "vision" else plugins.language(spec.language)
    return f"{component}.{plugin.LAYERS}"


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
    """A ``VLM`` with at most ``layers`` layers, of the components that are asked for.

    Weights are of a size that keeps activations alive: norms near one, products near unit gain.
    """
    vlm = VLM(cut(spec, layers), components)
    random = torch.Generator().manual_seed(0)
    for component in components:
        module = cast(nn.Module, getattr(vlm, component))
        state = {name: _random(name, value, random) for name, value in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
    if "language" in components and spec.language.tie_word_embeddings:
        vlm.language.tie_weights()  # type: ignore[operator]
    return vlm.eval().requires_grad_(False)


def _random(name: str, like: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    values = torch.randn(like.shape, generator=random)
    if like.ndim == 1:
        return values * 0.1 + 1 if name.endswith("weight") else values * 0.1
    return values.div_(like[0].numel() ** 0.5)
