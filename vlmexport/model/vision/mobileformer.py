"""Mobile-Former: MobileNet blocks and a few learned tokens side by side, with a bridge of attention both ways.

Source: Chen et al. 2022, arXiv:2108.05895; widths and names are those of the authors' release (AAboys/MobileFormer),
whose tensors of the tower fit. Features are the last map, 7x7 of 224 pixels. The authors' head (a last bridge, a wide
pointwise convolution and two linear layers) is left out: ``head_parameters`` says how many parameters it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.model.mobileformer_blocks import Block, make, with_norm

EXAMPLE = "mobileformer:tiny"
_MEAN: Colour
_STD: Colour
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STRIDE, _SIDE = 32, 224


@dataclass(frozen=True)
class Variant:
    """A published size. ``groups`` are those of its pointwise convolutions; ``head`` the width before the classes."""

    stem: int
    tokens: int
    token_width: int
    head: int
    blocks: tuple[Block, ...]
    groups: int = 1


def _variant(stem: int, tokens: int, token_width: int, head: int, blocks: str, groups: int = 1) -> Variant:
    """Blocks as ``expansion,width,stride,second`` between blanks."""
    parts = (tuple(map(int, block.split(","))) for block in blocks.split())
    return Variant(stem, tokens, token_width, head, tuple(Block(*part) for part in parts), groups)


_SMALL = "3,12,2,0 3,12,1,3 6,24,2,4 3,24,1,3 6,48,2,4 4,48,1,4 6,64,1,4 6,96,2,4 6,96,1,4"
VARIANTS = {
    "294m": _variant(16, 6, 192, 1920, "2,16,1,0 6,24,2,4 4,24,1,4 6,48,2,4 4,48,1,4 6,96,2,4 4,96,1,4 6,128,1,4 "
                                       "6,128,1,4 6,192,2,4 6,192,1,4 6,192,1,4"),
    "508m": _variant(24, 6, 192, 1920, "2,24,1,0 6,40,2,4 3,40,1,3 6,72,2,4 3,72,1,3 6,128,2,4 4,128,1,4 6,176,1,4 "
                                       "6,176,1,4 6,240,2,4 6,240,1,4 6,240,1,4"),
    "214m": _variant(12, 6, 192, 1600, "2,12,1,0 6,20,2,4 3,20,1,4 6,40,2,4 4,40,1,4 6,80,2,4 4,80,1,4 6,112,1,4 "
                                       "6,112,1,4 6,160,2,4 6,160,1,4 6,160,1,4"),
    "151m": _variant(12, 6, 192, 1280, "2,12,1,0 6,16,2,4 3,16,1,3 6,32,2,4 3,32,1,3 6,64,2,4 4,64,1,4 6,88,1,4 "
                                       "6,88,1,4 6,128,2,4 6,128,1,4 6,128,1,4"),
    "96m": _variant(12, 4, 128, 1280, "2,12,1,0 6,16,2,4 6,32,2,4 3,32,1,3 6,64,2,4 4,64,1,4 6,88,1,4 6,128,2,4 "
                                      "6,128,1,4"),
    "52m": _variant(8, 3, 128, 1024, _SMALL),
    "26m": _variant(8, 3, 128, 1024, _SMALL, groups=4),
    "tiny": _variant(8, 2, 32, 64, "2,8,2,0 2,8,2,0 2,8,2,0 4,16,2,3 3,16,1,3", groups=2),
}  # fmt: skip
"""By multiply-adds at 224 pixels, the paper's tables of specifications; and one for tests."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """A size of ``VARIANTS``, 224 pixels."""
    name = variant or next(iter(VARIANTS))
    if name not in VARIANTS:
        raise plugins.unknown_variant(kind, name, VARIANTS)
    width = VARIANTS[name].blocks[-1].width
    return plugins.check_image_size(VisionSpec(
        kind, image_size or _SIDE, _STRIDE, width, 0, 0, 0, "", select_layer=0, variant=name,
    ))  # fmt: skip


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """ImageNet's."""
    return _MEAN, _STD


def layers(spec: VisionSpec) -> None:
    """No stack of like layers."""
    return


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """The authors' head, which is not built."""
    return ("local_global.", "classifier.")


class _MobileFormer(nn.Module):
    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.tokens = nn.Embedding(variant.tokens, variant.token_width)
        self.stem = with_norm(nn.Conv2d(3, variant.stem, 3, 2, 1, bias=False), nn.ReLU6())
        width, found = variant.stem, []
        for block in variant.blocks:
            found.append(make(width, block, variant.token_width, variant.groups))
            width = block.width
        self.features = nn.ModuleList(found)


def build(spec: VisionSpec) -> nn.Module:
    """Published names: ``tokens``, ``stem``, ``features.N.{conv…,hyper…,local_global,global_block,global_local}``."""
    module = _MobileFormer(VARIANTS[spec.variant])
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer._non_persistent_buffers_set.add("num_batches_tracked")
    return module


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """The last map, row by row."""
    if spec.select_feature != "patch":
        raise Unsupported(f"mobileformer's features are its map, not {spec.select_feature!r}", "use patch")
    former = cast(_MobileFormer, module)
    x = former.stem(pixel_values)
    tokens = former.tokens.weight[None].expand(x.shape[0], -1, -1)
    for block in former.features:
        x, tokens = block(x, tokens)
    return cast(torch.Tensor, x.flatten(2).transpose(1, 2))


def head_parameters(name: str, classes: int = 1000) -> int:
    """Parameters of the authors' head of a variant: the last bridge, the pointwise convolution, two linear layers."""
    variant = VARIANTS[name]
    width, token, head = variant.blocks[-1].width, variant.token_width, variant.head
    inner = 6 * width
    bridge = 2 * (token * width + width) + width * token + token + 2 * token
    convolution = inner * width // variant.groups + 2 * inner
    return bridge + convolution + (inner + token) * head + head + 2 * head + head * classes + classes
