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
from vlmexport.compiled import compiled_for_finite

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_F16, _BF16, _F32 = 0, 1, 2
_KINDS = {"f16": _F16, "bf16": _BF16, "f32": _F32}
_TRIALS, _TRIAL_STEP = 16, np.float32(0.015)
_F16_SCALE = np.float32(2.0**112)
"""What is left to multiply once the bits of an f16 lie where f32 has them: the exponents' difference."""


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
    _quantize(words.reshape(-1, columns), _KINDS[dtype], bits, block, weights, levels, scales)
    return levels, scales


@compiled_for_finite
def _quantize(
    words: npt.NDArray[np.unsignedinteger], kind: int, bits: int, block: int, importance: F32, levels: U8, scales: F32
) -> None:
    rows, columns = words.shape
    values, weights = np.zeros(block, np.float32), np.zeros(block, np.float32)
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
            if importance.size and furthest != zero:
                weights[:size] = importance[start : start + size]
                weights[size:] = zero
                scale, inverse = search(values, weights, scale, middle)
            scales[row, j] = scale
            if bits == 4:
                for i in range(block // 2):
                    even = np.uint8(max(min(values[2 * i] * inverse + shift, top), zero))
                    odd = np.uint8(max(min(values[2 * i + 1] * inverse + shift, top), zero))
                    levels[row, j, i] = even | odd << 4
            else:
                for i in range(block):
                    levels[row, j, i] = np.uint8(max(min(values[i] * inverse + shift, top), zero))


@compiled_for_finite
def search(values: F32, weights: F32, scale: np.float32, middle: np.float32) -> tuple[np.float32, np.float32]:
    """The scale of least weighted squared error, and the factor that its levels are rounded with.

    For given levels the best scale is Σwxl / Σwl², and it leaves Σwx² − (Σwxl)² / Σwl². So factors around 1 / scale are
    tried, and the one with the largest second term is kept.
    """
    inverse = np.float32(1) / scale
    factors, products, powers = (
        np.empty(_TRIALS, np.float32),
        np.zeros(_TRIALS, np.float32),
        np.zeros(_TRIALS, np.float32),
    )
    for t in range(_TRIALS):
        factors[t] = inverse * (np.float32(1) + np.float32(t - _TRIALS // 2) * _TRIAL_STEP)
    top = middle - np.float32(1)
    for i in range(values.size):
        value, weight = values[i], weights[i]
        for t in range(_TRIALS):  # side by side in one vector
            level = min(max(np.floor(value * factors[t] + np.float32(0.5)), -middle), top)
            products[t] += weight * level * value
            powers[t] += weight * level * level
    best = -1
    for t in range(_TRIALS):
        if powers[t] > 0 and (
            best < 0 or products[t] * products[t] * powers[best] > products[best] * products[best] * powers[t]
        ):
            best = t
    if best < 0:
        return scale, inverse
    return products[best] / powers[best], factors[best]


def dequantize(levels: U8, scales: F32, bits: int, columns: int) -> F32:
    """The values that ``quantize`` stands for: f32 [outputs, columns]."""
    if bits == 4:
        levels = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1)
    values = (levels.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    found: F32 = values.reshape(len(levels), -1)[:, :columns]
    return found
