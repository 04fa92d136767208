"""Unstructured magnitude pruning: the smallest weights of each matrix become 0, and stay so while the rest learns.

Source: Han et al. 2015, arXiv:1506.02626. The file does not get smaller by it; what stays must carry the answers.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmexport.model import VLM, plugins


class Masks:
    """Which weights of the decoder's layers are left, by parameter path of the model."""

    def __init__(self, vlm: VLM, share: float) -> None:
        layers = f"language.{plugins.language(vlm.spec.language).LAYERS}"
        paths = [name for name, module in vlm.named_modules() if isinstance(module, nn.Linear)]
        weights = {f"{path}.weight" for path in paths if path.startswith(layers)}
        parameters = dict(vlm.named_parameters())
        self.kept = {name: _largest(parameters[name], share) for name in sorted(weights)} if share else {}

    def apply(self, vlm: VLM) -> None:
        """Set what was pruned to 0, in place: once, and after every step of an optimizer."""
        for name, kept in self.kept.items():
            vlm.get_parameter(name).data.mul_(kept)


def _largest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """bool of the weight's shape: False for exactly ``round(share · size)`` values, those of least magnitude."""
    kept = torch.ones(weight.numel(), dtype=torch.bool)
    order = weight.detach().abs().flatten().argsort(stable=True)
    kept[order[: round(share * weight.numel())]] = False
    return kept.reshape(weight.shape)
