"""Weights in blocks along the input, as ONNX Runtime's MatMulNBits holds them: 4 or 8 bits and one scale a block.

Round to nearest around a fixed zero point. By itself the scale maps the value of largest magnitude, with its sign, to
the lowest level, so that this value is exact; ONNX Runtime's own quantizer gives the same bytes. With importance, the
scale of least weighted squared error is looked for around it, as libggml does for its types with one scale.

A matrix is quantized from the checkpoint's own bytes in one pass, compiled by Numba: no float32 copy, no lock held.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.checkpoint.tensors import to_float32
from vlmexport.quantize import block_kernels as kernels

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_KINDS = {"f16": kernels.F16, "bf16": kernels.BF16, "f32": kernels.FLOAT32}


def quantize(raw: U8, dtype: str, columns: int, bits: int, block: int, importance: F32 | None = None) -> tuple[U8, F32]:
    """Quantize a matrix. NaN and infinity must have been ruled out (``floats.all_finite``).

    Args:
        raw: the bytes of [outputs, columns] values.
        dtype: their type, a key of ``tensors.DTYPES``.
        columns: inputs; rows that are no multiple of ``block`` are filled up with zeros.
        bits: 4 or 8.
        block: values that share a scale: 16, 32, 64 or 128.
        importance: f32 [columns] mean x² of what goes into each column; None: round to nearest without a search.

    Returns:
        u8 [outputs, blocks, block * bits / 8] levels, the even one of two in the low half, and
        f32 [outputs, blocks] scales: value = (level - 2**(bits - 1)) * scale.
    """
    if dtype not in _KINDS:
        raw, dtype = to_float32(raw, dtype).view(np.uint8), "f32"
    words = raw.view(np.uint32) if dtype == "f32" else raw.view(np.uint16)
    count = -(-columns // block)
    levels = np.empty((len(words) // columns, count, block * bits // 8), np.uint8)
    scales = np.empty((len(words) // columns, count), np.float32)
    weights = np.empty(0, np.float32) if importance is None else importance.astype(np.float32, copy=False)
    kernels.quantize(words.reshape(-1, columns), _KINDS[dtype], bits, block, weights, levels, scales)
    return levels, scales


def dequantize(levels: U8, scales: F32, bits: int, columns: int) -> F32:
    """The values that ``quantize`` stands for: f32 [outputs, columns]."""
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1)
    values = (levels.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    found: F32 = values.reshape(len(levels), -1)[:, :columns]
    return found
