"""Convolutional and hybrid encoders from timm, ``timm:NAME``: MobileNetV3, EfficientNet, MobileViT, EfficientFormer,
FastViT, MobileCLIP's image tower (``fastvit_mci0`` …) and others. The last feature map becomes H·W features.

Mean, deviation and image size are those timm gives for the model; the whole image is shown, padded to a square, and
resized with bicubic filtering. Tensor names are timm's. Branches that a model has for training alone (FastViT) are
merged, as for timm's ``reparameterize_model``; heads are left out.
"""

from __future__ import annotations

from copy import deepcopy
from math import isqrt
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from vlmexport.checkpoint.spec import Colour, VisionSpec
from vlmexport.errors import MissingDependency, Unsupported, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

EXAMPLE = "timm:test_efficientnet"
SHOWN = (
    "mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_lite0", "mobilevit_xxs",
    "mobilevit_xs", "mobilevit_s", "mobilevitv2_100", "efficientformer_l1", "efficientformer_l3",
    "efficientformerv2_s0", "fastvit_t8", "fastvit_mci0",
)  # fmt: skip
"""Models that the tests know; others may work too."""


def preset(kind: str, variant: str, image_size: int | None) -> VisionSpec:
    """Of timm's name, with or without a tag (``mobilenetv3_large_100.ra_in1k``); sizes are measured on the model."""
    name = variant or SHOWN[0]
    config = _config(name)
    side = image_size or int(config.input_size[-1])
    model = _create(name, side)
    try:
        found, _ = _dry_run(model, side)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise Unsupported(
            f"timm:{name} cannot take images of {side} pixels ({first_line(error)})",
            f"its own size is {config.input_size[-1]}",
        ) from error
    count, grid = found.shape[1], isqrt(found.shape[1])
    if grid**2 != count or side % grid:
        raise Unsupported(
            f"timm:{name} makes {count} features of {side} pixels, which do not divide", "use a multiple of 32"
        )
    return VisionSpec(
        kind=kind,
        image_size=side,
        patch_size=side // grid,
        hidden_size=found.shape[2],
        intermediate_size=0,
        num_layers=0,
        num_heads=0,
        hidden_act="",
        select_layer=0,
        variant=name,
    )


def colours(spec: VisionSpec) -> tuple[Colour, Colour]:
    """Those of timm's configuration."""
    config = _config(spec.variant)
    return _colour(config.mean), _colour(config.std)


def layers(spec: VisionSpec) -> None:
    """No stack of like layers."""
    return


def unused(spec: VisionSpec) -> tuple[str, ...]:
    """What is not used is not built."""
    return ()


def build(spec: VisionSpec) -> nn.Module:
    """timm's model without its head: what runs on the way to the features stays.

    Raises:
        Unsupported: timm has no such model, or not for this image size.
        MissingDependency: timm is not installed.
    """
    from torch import nn

    model = _create(spec.variant, spec.image_size)
    _, used = _dry_run(model, spec.image_size)
    for name, _ in list(model.named_children()):
        if name not in used:
            setattr(model, name, nn.Identity())
    return cast(nn.Module, model)


def features(module: nn.Module, pixel_values: torch.Tensor, spec: VisionSpec) -> torch.Tensor:
    """The last feature map, row by row."""
    if spec.select_feature != "patch":
        raise Unsupported(f"timm's maps have no class token, select_feature is {spec.select_feature!r}", "use patch")
    return _rows(module, pixel_values)


def _dry_run(model: Any, side: int) -> tuple[torch.Tensor, set[str]]:
    """Features of one image on the meta device, where nothing is computed, and the model's children that ran."""
    import torch

    copy = deepcopy(model).to("meta")
    ran: set[str] = set()
    for name, module in copy.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name.split(".")[0]))
    return _rows(copy, torch.empty(1, 3, side, side, device="meta")), ran


def _rows(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """f32 [views, 3, height, width] → [views, H·W, channels]."""
    found: torch.Tensor = model.forward_features(pixel_values)
    return found if found.ndim == 3 else found.flatten(2).transpose(1, 2)


def library() -> Any:
    """timm.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingDependency("timm is not installed", "pip install 'vlmexport[timm]'") from error
    return timm


def _config(name: str) -> Any:
    config = library().get_pretrained_cfg(name)
    if config is None:
        raise Unsupported(f"timm has no model {name!r}", f"known, for example: {', '.join(SHOWN)}")
    return config


def _create(name: str, side: int) -> Any:
    """The model with random weights on the CPU: timm fills tables of indices while it builds, which meta would lose."""
    timm, config = library(), _config(name)
    from timm.utils.model import reparameterize_model

    sized = {} if side == config.input_size[-1] else {"img_size": side}
    try:
        model = timm.create_model(name, num_classes=0, **sized)
    except TypeError:  # a convolutional model takes any size, and no argument for it
        model = timm.create_model(name, num_classes=0)
    model = reparameterize_model(model.eval(), inplace=True)
    for module in model.modules():
        _leave_integers_out(module)
        _forget_cached_biases(module)
    return model


def _leave_integers_out(module: nn.Module) -> None:
    """Indices and counters follow from the model's sizes: they are no weights of a checkpoint."""
    for name, buffer in module.named_buffers(recurse=False):
        if not buffer.is_floating_point():
            module._non_persistent_buffers_set.add(name)


def _forget_cached_biases(module: Any) -> None:
    """EfficientFormer keeps its gathered attention biases from one call to the next; a trace would keep them too."""
    if hasattr(module, "attention_bias_cache"):
        module.get_attention_biases = MethodType(_attention_biases, module)


def _attention_biases(module: Any, device: torch.device) -> torch.Tensor:
    found: torch.Tensor = module.attention_biases[:, module.attention_bias_idxs]
    return found


def _colour(values: Any) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
