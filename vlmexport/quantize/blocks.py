"""Weights in blocks along the input, as ONNX Runtime's MatMulNBits holds them: 4 or 8 bits and one scale a block.

Round to nearest around a fixed zero point; the scale maps the value of largest magnitude, with its sign, to the lowest
level, so that this value is exact. ONNX Runtime's own quantizer gives the same bytes.

A matrix is quantized from the checkpoint's own bytes in one pass, compiled by Numba: no float32 copy, no lock held.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.checkpoint.tensors import to_float32
from vlmexport.compiled import compiled_for_finite

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_F16, _BF16, _F32 = 0, 1, 2
_KINDS = {"f16": _F16, "bf16": _BF16, "f32": _F32}
_F16_SCALE = np.float32(2.0**112)
"""What is left to multiply once the bits of an f16 lie where f32 has them: the exponents' difference."""


def quantize(raw: U8, dtype: str, columns: int, bits: int, block: int) -> tuple[U8, F32]:
    """Quantize a matrix. NaN and infinity must have been ruled out (``floats.all_finite``).

    Args:
        raw: the bytes of [outputs, columns] values.
        dtype: their type, a key of ``tensors.DTYPES``.
        columns: inputs; rows that are no multiple of ``block`` are filled up with zeros.
        bits: 4 or 8.
        block: values that share a scale: 16, 32, 64 or 128.

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
    _quantize(words.reshape(-1, columns), _KINDS[dtype], bits, block, levels, scales)
    return levels, scales


@compiled_for_finite
def _quantize(
    words: npt.NDArray[np.unsignedinteger], kind: int, bits: int, block: int, levels: U8, scales: F32
) -> None:
    rows, columns = words.shape
    values = np.zeros(block, np.float32)
    middle = np.float32(1 << bits - 1)
    # Plus a half, then cut off: rounds like ONNX Runtime, halves upwards. Only the upper end can be a level too high.
    shift, top, one, zero = middle + np.float32(0.5), 2 * middle - np.float32(1), np.float32(1), np.float32(0)
    for row in range(rows):
        for j in range(scales.shape[1]):
            start, size = j * block, min(block, columns - j * block)
            if kind == _F16:
                for i in range(size):
                    word = np.uint32(words[row, start + i])
                    bit32 = (word & np.uint32(0x8000)) << np.uint32(16) | (word & np.uint32(0x7FFF)) << np.uint32(13)
                    values[i] = np.uint32(bit32).view(np.float32) * _F16_SCALE
            else:
                shifted = np.uint32(16 if kind == _BF16 else 0)
                for i in range(size):
                    values[i] = np.uint32(np.uint32(words[row, start + i]) << shifted).view(np.float32)
            values[size:] = zero
            low, high = zero, zero
            for i in range(block):
                low, high = min(low, values[i]), max(high, values[i])
            furthest = high if high > -low else low
            scale = -furthest / middle if furthest != zero else zero
            inverse = one / scale if furthest != zero else zero
            scales[row, j] = scale
            if bits == 4:
                for i in range(block // 2):
                    even = np.uint8(min(values[2 * i] * inverse + shift, top))
                    odd = np.uint8(min(values[2 * i + 1] * inverse + shift, top))
                    levels[row, j, i] = even | odd << 4
            else:
                for i in range(block):
                    levels[row, j, i] = np.uint8(min(values[i] * inverse + shift, top))


def dequantize(levels: U8, scales: F32, bits: int, columns: int) -> F32:
    """The values that ``quantize`` stands for: f32 [outputs, columns]."""
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1)
    values = (levels.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    found: F32 = values.reshape(len(levels), -1)[:, :columns]
    return found
