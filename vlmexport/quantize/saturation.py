"""What x86 processors without VNNI lose of an int8 product: ``vpmaddubsw`` multiplies two unsigned activations by two
signed weights, adds the products in 16 bits and stops at the ends.

ONNX Runtime's kernel takes columns two by two, in order. VNNI, AMX and arm64 add in 32 bits and lose nothing. Two
weights v and w with |v + w| ≤ ``SAFE`` never saturate: 255·(v + w) stays within int16 where they have one sign, and
with two signs no sum leaves it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.compiled import compiled
from vlmexport.quantize.ranges import F32, Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme

I16 = npt.NDArray[np.int16]
LIMIT = np.int32(2**15 - 1)
SAFE = 128
"""The largest ``Scheme.pair_max`` with which nothing saturates, whatever the activations are."""


def lost(rows: F32, weight: F32, span: Range, scheme: Scheme, terms: int = 1) -> tuple[float, float]:
    """What is lost of x·W on such a machine.

    Args:
        rows: f32 [rows, columns] of the input.
        weight: f32 [columns, outputs].
        span: range of the input.
        terms: 2 where the input is read as two int8 terms, each of them a product.

    Returns:
        the part of the pairs that saturate, and the mean of Σ(error²) of a row's outputs. Both are 0 for schemes
        whose activations are signed: their kernel on x86 adds otherwise.
    """
    if scheme.signed or not len(rows):
        return 0.0, 0.0
    scales = weight_scales(weight, 1, scheme)
    integers = quantize_weight(weight, scales, 1, scheme).astype(np.int16)
    if len(integers) % 2:
        integers = np.pad(integers, ((0, 1), (0, 0)))
    errors, pairs = np.zeros((len(rows), integers.shape[1])), 0
    for _ in range(terms):
        scale, zero = span.parameters(scheme)
        levels = np.clip(np.round(rows / scale) + zero, scheme.activation_min, scheme.activation_max)
        rows, span = (rows - (levels - zero) * scale).astype(np.float32), Range(-scale / 2, scale / 2)
        over = np.zeros(errors.shape, np.int32)
        pairs += _excess(_even(levels.astype(np.int16)), integers, over)
        errors += over * (scales.astype(np.float64) * scale)
    return pairs / (errors.size * len(integers) / 2 * terms), float(np.square(errors).sum() / len(rows))


def _even(levels: I16) -> I16:
    """With a column of zeros where their number is odd."""
    return np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))


@compiled
def _excess(levels: I16, weight: I16, over: npt.NDArray[np.int32]) -> int:
    """Sum of what is cut off, i32 [rows, outputs], filled in; the number of pairs that were cut is returned."""
    pairs = 0
    for r in range(levels.shape[0]):
        for k in range(0, levels.shape[1], 2):
            a, b = np.int32(levels[r, k]), np.int32(levels[r, k + 1])
            for n in range(weight.shape[1]):
                total = a * np.int32(weight[k, n]) + b * np.int32(weight[k + 1, n])
                cut = max(total - LIMIT, np.int32(0)) + min(total + LIMIT + np.int32(1), np.int32(0))
                over[r, n] += cut
                pairs += int(cut != 0)
    return pairs
