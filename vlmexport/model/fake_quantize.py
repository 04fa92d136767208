"""Rounding to integers and back with scales that are tensors: QuantizeLinear and DequantizeLinear when traced.

torch 2.14 has no shape functions for ``fake_quantize_per_tensor_affine`` with tensors for scale and zero point, and for
``fake_quantize_per_channel_affine``: tracing wants the one, counting operations without weights both. They stand here.
"""

from __future__ import annotations

from contextlib import suppress

import torch

_EPS = 2.0**-23
"""The smallest scale of torch's observers."""

_HALF_STEPS = 127.5 * (1 - 2.0**-20)
"""torch's observers divide by 127.5, which puts the largest weight exactly between two integers: it went to the one in
torch, which multiplies by 1/scale, and to the other in ONNX Runtime, which divides."""


def affine(x: torch.Tensor, span: torch.Tensor, steps: int) -> torch.Tensor:
    """Round to the integers 0…255, ``steps`` of which span f32 [2] (least, largest, zero inside), and back."""
    span = span.detach()
    low, high = span.amin(0).clamp(max=0.0), span.amax(0).clamp(min=0.0)
    scale = ((high - low) / steps).clamp(min=_EPS)
    return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().to(torch.int32), 0, 255)


def symmetric(weight: torch.Tensor, per_channel: bool) -> torch.Tensor:
    """Round f32 [outputs, inputs] to the integers −128…127 of one scale, or of one for each output, and back."""
    fixed = weight.detach().abs()  # gradients pass through the rounding, not through its scale
    largest = fixed.amax(1) if per_channel else fixed.amax((0, 1))
    scale = (largest / _HALF_STEPS).clamp(min=_EPS)
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    if per_channel:
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -128, 127)
    return torch.fake_quantize_per_tensor_affine(weight, scale, zero, -128, 127)


def _shapes(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the rounded values, and of the mask of those that were not cut off."""
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


for _operator in (
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams", "fake_quantize_per_channel_affine_cachemask",
):  # fmt: skip
    with suppress(RuntimeError):  # a later torch may have its own
        torch.library.register_fake(f"aten::{_operator}", _shapes)
