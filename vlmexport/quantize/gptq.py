"""GPTQ: round a weight column by column, and let the columns still to come make up for the error of each.

Source: Frantar et al. 2022, arXiv:2210.17323. Blocks of columns have one scale, as in ``blocks``; it is searched, by
importance, when the block is reached.
"""

from __future__ import annotations

import numpy as np
import torch

from vlmexport.quantize.block_kernels import F32, U8, round_block

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
        round_block(part, own, importance[start:stop], levels[:, start:stop], scales[:, number], errors)
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
