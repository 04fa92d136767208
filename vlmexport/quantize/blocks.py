"""Weights in blocks along the input, as ONNX Runtime's MatMulNBits holds them: 4 or 8 bits and one scale a block.

Round to nearest around a fixed zero point; the scale maps the value of largest magnitude, with its sign, to the lowest
level, so that this value is exact. ONNX Runtime's own quantizer gives the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def quantize(weight: torch.Tensor, bits: int, block: int) -> tuple[U8, F32]:
    """Quantize a matrix.

    Args:
        weight: f32 [outputs, inputs]; rows that are no multiple of ``block`` are filled up with zeros.
        bits: 4 or 8.
        block: values that share a scale: 16, 32, 64 or 128.

    Returns:
        u8 [outputs, blocks, block * bits / 8] levels, the even one of two in the low half, and
        f32 [outputs, blocks] scales: value = (level - 2**(bits - 1)) * scale.
    """
    rows, columns = weight.shape
    if columns % block:
        weight = torch.nn.functional.pad(weight, (0, block - columns % block))
    values = weight.reshape(rows, -1, block)
    low, high = values.amin(2), values.amax(2)  # aminmax is three times as slow as both
    middle = 2 ** (bits - 1)
    scales = torch.where(high > -low, high, low) / -middle
    inverse = torch.where(scales != 0, 1 / scales, 0)
    # Plus a half, then cut off: rounds like ONNX Runtime, halves upwards. Only the upper end can be one level too high.
    levels = (values * inverse[..., None]).add_(middle + 0.5).to(torch.int16).clamp_(max=2 * middle - 1)
    if bits == 4:
        pairs = levels.view(torch.int32)  # the even level in the low half
        levels = pairs | (pairs >> 12)
    return levels.to(torch.uint8).numpy(), scales.numpy()


def dequantize(levels: U8, scales: F32, bits: int, columns: int) -> F32:
    """The values that ``quantize`` stands for: f32 [outputs, columns]."""
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1)
    values = (levels.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    found: F32 = values.reshape(len(levels), -1)[:, :columns]
    return found
