"""What AVX2 without VNNI loses of an int8 product: ``vpmaddubsw`` adds two products of U8 and S8 in 16 bits and stops
at their ends.

ONNX Runtime's kernel takes columns two by two, in order. VNNI, AMX and arm64 add in 32 bits and lose nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.compiled import compiled
from vlmexport.quantize.ranges import F32, Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import Scheme

I16 = npt.NDArray[np.int16]
LIMIT = np.int32(2**15 - 1)


def lost(rows: F32, weight: F32, span: Range, scheme: Scheme) -> tuple[float, float]:
    """What is lost of x·W on such a machine.

    Args:
        rows: f32 [rows, columns] of the input.
        weight: f32 [columns, outputs].
        span: range of the input.

    Returns:
        the part of the pairs that saturate, and the mean of Σ(error²) of a row's outputs. Both are 0 for schemes
        whose activations are signed: their kernel on x86 adds otherwise.
    """
    if scheme.signed or not len(rows):
        return 0.0, 0.0
    scale, zero = span.parameters(scheme)
    # The type's limits, not the scheme's: QuantizeLinear knows no others.
    levels = np.clip(np.round(rows / scale) + zero, 0, 255).astype(np.int16)
    scales = weight_scales(weight, 1, scheme)
    integers = quantize_weight(weight, scales, 1, scheme).astype(np.int16)
    if levels.shape[1] % 2:
        levels, integers = np.pad(levels, ((0, 0), (0, 1))), np.pad(integers, ((0, 1), (0, 0)))
    over = np.zeros((len(levels), integers.shape[1]), np.int32)
    pairs = _excess(levels, integers, over)
    errors = over * (scales.astype(np.float64) * scale)
    return pairs / (over.size * levels.shape[1] / 2), float(np.square(errors).sum() / len(levels))


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
