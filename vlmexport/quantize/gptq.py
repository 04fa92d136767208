"""GPTQ: round a weight column by column, and let the columns still to come make up for the error of each.

Source: Frantar et al. 2022, arXiv:2210.17323. Blocks of columns have one scale, as in ``blocks``; it is searched, by
importance, when the block is reached.
"""

from __future__ import annotations

import numpy as np
import torch

from vlmexport.compiled import compiled_for_finite
from vlmexport.quantize.blocks import F32, U8, search

DAMPING = 0.01
"""Part of the mean of the diagonal that is added to it."""


def quantize(weight: F32, hessian: F32, block: int) -> tuple[U8, F32]:
    """Quantize a matrix to 4 bits.

    Args:
        weight: f32 [outputs, columns].
        hessian: f32 [columns, columns] mean x·xᵀ of what goes in.
        block: columns that share a scale.

    Returns:
        as ``blocks.quantize``: u8 [outputs, blocks, block / 2] levels, f32 [outputs, blocks] scales.
    """
    outputs, columns = weight.shape
    left, importance = weight.astype(np.float32, copy=True), np.ascontiguousarray(np.diagonal(hessian))
    inverse = _inverse(hessian)
    count = -(-columns // block)
    levels, scales = np.full((outputs, count * block), 8, np.uint8), np.zeros((outputs, count), np.float32)
    for number in range(count):
        start, stop = number * block, min((number + 1) * block, columns)
        part = np.ascontiguousarray(left[:, start:stop])
        own = np.ascontiguousarray(inverse[start:stop, start:stop])
        errors = np.empty_like(part)
        _round(part, own, importance[start:stop], levels[:, start:stop], scales[:, number], errors)
        if stop < columns:
            left[:, stop:] -= errors @ inverse[start:stop, stop:]
    packed = levels.reshape(outputs, count, block)
    return packed[..., 0::2] | packed[..., 1::2] << 4, scales


def _inverse(hessian: F32) -> F32:
    """f32 upper factor U of the inverse: UᵀU = (H + damping)⁻¹. A column that is always 0 stands by itself."""
    matrix = torch.from_numpy(hessian).double()
    diagonal = matrix.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp(min=1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    found: F32 = torch.linalg.cholesky(inverse, upper=True).float().numpy()
    return found


@compiled_for_finite
def _round(part: F32, own: F32, importance: F32, levels: U8, scales: F32, errors: F32) -> None:
    """Round a block row by row; ``part`` is used up, ``errors`` are what the columns after the block make up for."""
    rows, columns = part.shape
    middle, half, zero = np.float32(8), np.float32(0.5), np.float32(0)
    for row in range(rows):
        low, high = zero, zero
        for i in range(columns):
            low, high = min(low, part[row, i]), max(high, part[row, i])
        furthest = high if high > -low else low
        if furthest == zero:
            errors[row] = zero
            continue
        scale, _ = search(part[row], importance, -furthest / middle, middle)
        scales[row] = scale
        for i in range(columns):
            value = part[row, i]
            level = min(max(np.floor(value / scale + half), -middle), middle - np.float32(1))
            levels[row, i] = np.uint8(level + middle)
            error = (value - level * scale) / own[i, i]
            errors[row, i] = error
            for j in range(i + 1, columns):
                part[row, j] -= error * own[i, j]
