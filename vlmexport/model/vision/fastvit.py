"""FastViTHD, FastVLM's encoder (arXiv:2412.13303): timm's ``fastvit_mci3`` in its inference form, ``fastvit:mci3``.

Three stages of convolutions and two of attention; every 64x64 pixels become one feature. Weights are in the form in
which they are published: branches that training alone has are merged. The head is left out. Tensor names are timm's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import Unsupported
from vlmexport.families.reading.fastvit_tensors import SIZES
from vlmexport.model import plugins
from vlmexport.model.vision.timm import library

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "fastvit:tiny"
_LOUD = "its noise reaches every layer"
FLOAT = {"stem.*": _LOUD, "stages.*.downsample.*": _LOUD, "stages.0.*": "no faster in int8"}
"""What int8 does not serve (docs/quantization.md has the measurements): what stands before a stage's residual sums, and
the first stage, where rounding a map of 65,536 pixels takes longer than products of 96 channels save."""

_MIXERS = ("repmixer", "repmixer", "repmixer", "attention", "attention")
_SIDE, _STRIDE = 1024, 64
_POSITIONS = (7, 7)
"""Size of the depthwise kernel that tells attention where a feature is."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """Of ``families.reading.fastvit_tensors.SIZES``."""
    sizes = plugins.variant_of(kind, variant, SIZES)
    spec = VisionSpec(
        kind=kind,
        image_size=image_size or _SIDE,
        patch_size=_STRIDE,
        hidden_size=sizes.features,
        intermediate_size=0,
        num_layers=0,
        num_heads=0,
        hidden_act="gelu",
        select_layer=0,
        variant=variant or next(iter(SIZES)),
    )
    return plugins.check_image_size(spec)


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """FastVLM's: pixels from 0 to 1."""
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def layers(spec: VisionSpec) -> None:
    """Its stages have other widths: no stack of like layers."""
    return


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """What is not used is not built."""
    return ()


def build(spec: VisionSpec) -> nn.Module:
    """timm's model without its head, parameters on the meta device.

    Raises:
        MissingDependency: timm is not installed.
    """
    library()
    import torch
    from timm.layers import LayerNorm2d
    from timm.models.fastvit import FastVit, RepConditionalPosEnc
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    sizes = plugins.variant_of(spec.kind, spec.variant, SIZES)
    positions = partial(RepConditionalPosEnc, spatial_shape=_POSITIONS)
    with torch.device("meta"):
        model = FastVit(
            layers=sizes.blocks, embed_dims=sizes.widths, token_mixers=_MIXERS, num_classes=0, inference_mode=True,
            mlp_ratios=(4.0,) * 5, downsamples=(False, True, True, True, True), se_downsamples=(False,) * 5,
            pos_embs=(None, None, None, positions, positions), norm_layer=partial(LayerNorm2d, eps=1e-5),
            lkc_use_act=True, stem_use_scale_branch=False,
        )  # fmt: skip
    model.head = nn.Identity()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_buffer("num_batches_tracked", None)  # a count, and no weight
    return cast(nn.Module, model)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """The last feature map, row by row."""
    if spec.select_feature != "patch":
        raise Unsupported(f"FastViT's map has no class token, select_feature is {spec.select_feature!r}", "use patch")
    found: torch.Tensor = module.forward_features(pixel_values)  # type: ignore[operator]
    return found.flatten(2).transpose(1, 2)
