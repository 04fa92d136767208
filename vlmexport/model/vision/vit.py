"""The plain vision transformer of from-scratch tutorials: class token, learned positions, pre-norm blocks, a last norm.

Attention is scaled by one over the root of the whole width (not of a head's) and its projections have no bias, as such
a tutorial for vision-language models writes it. Source of the design: Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.model import plugins
from vlmexport.model.attention import Attention

EXAMPLE = "vit:tiny"
_HALF: Colour = (0.5, 0.5, 0.5)
_TUTORIAL = VisionSpec("vit", 96, 16, 512, 2048, 3, 8, "gelu", 1e-5, select_layer=-1)
_VARIANTS = {
    "tutorial": _TUTORIAL,
    "tiny": replace(_TUTORIAL, hidden_size=64, intermediate_size=256, num_layers=4, num_heads=4),
}
"""The tutorial's (96 pixels, patches of 16, 512 wide), and one for tests."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``_VARIANTS``."""
    return plugins.sized(plugins.variant_of(kind, variant, _VARIANTS), image_size)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """A half, both."""
    return _HALF, _HALF


def layers(spec: VisionSpec) -> str:
    """``blocks.``"""
    return "blocks."


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """All is used: the last norm follows whatever layer is selected."""
    return ()


class _Block(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.norm1, self.norm2 = (nn.LayerNorm(width, spec.layer_norm_eps) for _ in range(2))
        self.attn = Attention(width, width, spec.num_heads, bias=False, scale=width**-0.5)
        self.fc1, self.fc2 = nn.Linear(width, spec.intermediate_size), nn.Linear(spec.intermediate_size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        output: torch.Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return output


class _ViT(nn.Module):
    def __init__(self, spec: VisionSpec) -> None:
        super().__init__()
        width = spec.hidden_size
        self.patch_embedding = nn.Conv2d(3, width, spec.patch_size, spec.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(1, spec.grid**2 + 1, width))
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.num_layers))
        self.layer_norm = nn.LayerNorm(width, spec.layer_norm_eps)


def build(spec: VisionSpec) -> nn.Module:
    """Names: ``patch_embedding``, ``cls_token``, ``pos_embedding``, ``blocks.N.{attn,fc1,fc2,norm1,norm2}``,
    ``layer_norm``."""
    with torch.device("meta"):
        return _ViT(spec)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """The selected layer's output after the last norm; with ``cls_patch`` the class token first."""
    vit = cast(_ViT, module)
    patches = vit.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    x = torch.cat([vit.cls_token.expand(patches.shape[0], -1, -1), patches], 1) + vit.pos_embedding
    for block in vit.blocks[: spec.used_layers]:
        x = block(x)
    normed = cast(torch.Tensor, vit.layer_norm(x))
    return normed if spec.select_feature == "cls_patch" else normed[:, 1:]
