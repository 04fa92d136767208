"""Random weights that keep a model alive: what a sketch is traced with, and what ``vlmexport new`` writes.

They are distinct, so that no optimiser takes two of them for one, or a norm of ones for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_LEAST_VARIANCE = 1e-3
"""Of a channel that noise never reaches; the norm would make anything huge of it."""


def random_weight(name: str, like: torch.Tensor, random: torch.Generator, norm: float = 1.0) -> torch.Tensor:
    """f32 of the shape of ``like``: norms near ``norm``, products near unit gain."""
    values = torch.randn(like.shape, generator=random)
    if name.endswith("running_var"):
        return 1 + values.abs_().mul_(0.1)
    if like.ndim <= 1:
        return values * 0.1 + norm if name.endswith("weight") else values * 0.1
    return values.div_(like[0].numel() ** 0.5)


def randomise(module: nn.Module, random: torch.Generator) -> None:
    """Give a module random weights, in the order of its state dict; meta parameters become real ones."""
    state = {name: random_weight(name, value, random) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True, strict=False)
    module.requires_grad_(False)


class Observer(nn.Module):
    """A module that notes the range of what it sees while it trains."""


def measure_statistics(module: nn.Module, run: Callable[[], object]) -> None:
    """Give batch norms and observers what reaches them while ``run`` runs the module, as training would.

    Without it a deep convolutional encoder of random weights fades: its features say nothing of the image.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    observers = [layer for layer in module.modules() if isinstance(layer, Observer)]
    if not norms and not observers:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    for layer in (*norms, *observers):
        layer.train()
    with torch.no_grad():
        run()
    for layer in (*norms, *observers):
        layer.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=_LEAST_VARIANCE)
