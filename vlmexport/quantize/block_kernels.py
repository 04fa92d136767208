"""Loops over weights in blocks, compiled by Numba: a matrix rounded to nearest, one block rounded as GPTQ does.

They stand in one file because both look for a scale: Numba keeps machine code under the hash of the file that a
function stands in, and would not see a change of what it calls in another one (tests/test_compiled.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.compiled import compiled_for_finite

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

F16, BF16, FLOAT32 = 0, 1, 2
"""Types of the words that ``quantize`` reads."""
_TRIALS, _TRIAL_STEP = 16, np.float32(0.015)
_SURE = np.float32(1 + 2.0**-13)
"""By what factor a term must be larger than another, so that no sum of 128 products in float32 says so by mistake."""
_F16_SCALE = np.float32(2.0**112)
"""What is left to multiply once the bits of an f16 lie where f32 has them: the exponents' difference."""


@compiled_for_finite
def quantize(
    words: npt.NDArray[np.unsignedinteger], kind: int, bits: int, block: int, importance: F32, levels: U8, scales: F32
) -> None:
    """Round a matrix to nearest; the scale of each block is searched by importance where there is any.

    Args:
        words: u16 or u32 [outputs, columns] as the checkpoint holds them.
        kind: what they are: ``F16``, ``BF16`` or ``FLOAT32``.
        bits, block: as ``blocks.quantize``.
        importance: f32 [columns], or empty.
        levels, scales: u8 [outputs, blocks, block * bits / 8] and f32 [outputs, blocks], filled in.
    """
    rows, columns = words.shape
    values, weights = np.zeros(block, np.float32), np.zeros(block, np.float32)
    middle = np.float32(1 << bits - 1)
    # Plus a half, then cut off: rounds like ONNX Runtime, halves upwards. Only the upper end can be a level too high.
    shift, top, one, zero = middle + np.float32(0.5), 2 * middle - np.float32(1), np.float32(1), np.float32(0)
    for row in range(rows):
        for j in range(scales.shape[1]):
            start, size = j * block, min(block, columns - j * block)
            if kind == F16:
                for i in range(size):
                    word = np.uint32(words[row, start + i])
                    bit32 = (word & np.uint32(0x8000)) << np.uint32(16) | (word & np.uint32(0x7FFF)) << np.uint32(13)
                    values[i] = np.uint32(bit32).view(np.float32) * _F16_SCALE
            else:
                shifted = np.uint32(16 if kind == BF16 else 0)
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
                scale, inverse = _search(values, weights, scale, middle)
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
def round_block(part: F32, own: F32, importance: F32, levels: U8, scales: F32, errors: F32) -> None:
    """Round a block to 4 bits row by row; the columns still to come make up for the error of each.

    Args:
        part: f32 [outputs, columns of the block], used up.
        own: f32 [columns, columns] upper factor of the inverse Hessian, the block's part.
        importance: f32 [columns].
        levels: u8 [outputs, columns], filled in.
        scales: f32 [outputs], filled in.
        errors: f32 [outputs, columns], filled in: what the columns after the block make up for.
    """
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
        scale, _ = _search(part[row], importance, -furthest / middle, middle)
        scales[row] = scale
        for i in range(columns):
            value = part[row, i]
            level = min(max(np.floor(value / scale + half), -middle), middle - np.float32(1))
            levels[row, i] = np.uint8(level + middle)
            error = (value - level * scale) / own[i, i]
            errors[row, i] = error
            for j in range(i + 1, columns):
                part[row, j] -= error * own[i, j]


@compiled_for_finite
def _search(values: F32, weights: F32, scale: np.float32, middle: np.float32) -> tuple[np.float32, np.float32]:
    """The scale of least weighted squared error, and the factor that its levels are rounded with.

    For given levels the best scale is Σwxl / Σwl², and it leaves Σwx² − (Σwxl)² / Σwl². So factors around 1 / scale are
    tried, and the one with the largest second term is kept. Where it is hardly larger than that of the given
    scale, the errors of both are added up in float64, and the scale with the smaller one stays.
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
    found, gain = products[best] / powers[best], np.float64(0)
    given = _TRIALS // 2
    if products[best] ** 2 * powers[given] > _SURE * products[given] ** 2 * powers[best]:
        return found, factors[best]
    for i in range(values.size):
        searched = _error(values[i], found, factors[best], middle)
        unsearched = _error(values[i], scale, inverse, middle)
        gain += np.float64(weights[i]) * (unsearched * unsearched - searched * searched)
    return (found, factors[best]) if gain >= 0 else (scale, inverse)


@compiled_for_finite
def _error(value: np.float32, scale: np.float32, factor: np.float32, middle: np.float32) -> np.float64:
    """How far off a value comes back, which it does in float32."""
    level = min(max(np.floor(value * factor + np.float32(0.5)), -middle), middle - np.float32(1))
    return np.float64(level * scale) - np.float64(value)
