"""llama.cpp's K-quants with its own bytes, two to four times as fast: ``scale_search`` for scales, NumPy for the rest.

libggml stays the judge: where a sample does not come out byte for byte as libggml makes it (a library compiled with
fused multiplication, as on arm64), ``encoder`` gives nothing and libggml does the work.

Source of the layouts: ``block_q4_K``, ``block_q5_K`` and ``block_q6_K`` of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Encode = Callable[[F32, F32 | None, U8], bool]
"""(rows f32 [rows, columns], importance f32 [columns] or None, out u8 [rows, bytes]) → whether ``out`` holds them."""

TYPES = ("q4_k", "q5_k", "q6_k")
BLOCK = 256
ROUNDED = 4194303
"""libggml's way of rounding needs smaller values."""

_checking = Lock()


def encoder(type_name: str, judge: Callable[[F32, str, F32 | None], U8]) -> Encode | None:
    """The fast way to quantize to a type, where there is one that agrees with ``judge`` byte for byte.

    Args:
        judge: (rows, type, importance) → bytes, by libggml.
    """
    if type_name not in TYPES:
        return None
    with _checking:
        return _agreeing(type_name, judge)


@cache
def _agreeing(type_name: str, judge: Callable[[F32, str, F32 | None], U8]) -> Encode | None:
    encode = _encode_q6_k if type_name == "q6_k" else _encode_q5_k if type_name == "q5_k" else _encode_q4_k
    rows = samples()
    for importance in (None, np.geomspace(1e-4, 1e2, rows.shape[1], dtype=np.float32)):
        expected = judge(rows, type_name, importance)
        found = np.empty_like(expected)
        if not encode(rows, importance, found) or not np.array_equal(found, expected):
            return None
    return encode


def samples() -> F32:
    """Rows on which another order of operations or a fused multiplication shows: f32 [48, 512].

    A range that is small beside the values makes rounding errors as large as what the searches compare.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((48, 512), np.float32)
    rows[16:32] = rows[16:32] * np.geomspace(1e-6, 1e-3, 16, dtype=np.float32)[:, None] - 1
    rows[32:40] *= rng.random((8, 512), np.float32) ** 8
    rows[40:44] = np.abs(rows[40:44])
    rows[44] = 0
    rows[45, ::2] = 0
    rows[46] = -0.5
    rows[47] = np.rint(rows[47])
    return rows


def _encode_q4_k(rows: F32, importance: F32 | None, out: U8) -> bool:
    blocks = out.reshape(-1, 144)
    levels = _encode_with_minimum(rows, importance, blocks, 15, (-1, 0.1, 20))
    if levels is None:
        return False
    np.bitwise_or(levels[:, 0::2], levels[:, 1::2] << 4, out=blocks[:, 16:].reshape(-1, 4, 32))
    return True


def _encode_q5_k(rows: F32, importance: F32 | None, out: U8) -> bool:
    blocks = out.reshape(-1, 176)
    levels = _encode_with_minimum(rows, importance, blocks, 31, (-0.5, 0.1, 15))
    if levels is None:
        return False
    fifth = (levels >> 4) << np.arange(8, dtype=np.uint8)[:, None]
    np.bitwise_or.reduce(fifth, axis=1, out=blocks[:, 16:48])
    levels &= 15
    np.bitwise_or(levels[:, 0::2], levels[:, 1::2] << 4, out=blocks[:, 48:].reshape(-1, 4, 32))
    return True


def _encode_with_minimum(
    rows: F32, importance: F32 | None, blocks: U8, top: int, guesses: tuple[float, float, int]
) -> U8 | None:
    """Scales and minima of q4_k or q5_k into ``blocks``; gives the levels, u8 [blocks, 8, 32]."""
    from vlmexport.quantize import scale_search as search

    x = rows.reshape(-1, 32)
    known = np.empty((0, 32), np.float32) if importance is None else importance.reshape(-1, 32)
    first, step, steps = guesses if importance is None else (-0.9, 0.05, 36)
    w, guess = np.empty_like(x), np.empty((4, len(x)), np.float32)
    search.weigh(x, known, w)
    search.scale_and_minimum(x, w, np.float32(top), np.float32(first), np.float32(step), steps, guess)
    if not np.isfinite(guess).all():  # a range so small that its inverse overflows
        return None
    both = guess[:2].reshape(2, -1, 8)
    if importance is None:
        shared = _share(both)
        if shared is None:
            return None
        unit, parts = shared
    else:
        unit, parts = np.empty((2, len(blocks)), np.float32), np.empty((2, len(blocks), 8), np.uint8)
        total = w[:, 0].copy()
        for column in range(1, 32):
            total += w[:, column]
        for i in range(2):
            search.common_scale(both[i], total.reshape(-1, 8), 63, parts[i], unit[i])
    held = _halves(unit)
    if held is None:
        return None
    blocks[:, 0:4] = np.ascontiguousarray(held.T).view(np.uint8)
    _pack_scales(parts, blocks[:, 4:16])
    scale, minimum = (held.astype(np.float32)[..., None] * parts.astype(np.float32)).reshape(2, -1)
    levels = np.empty(x.shape, np.uint8)
    largest = search.levels_of(x, scale, minimum, guess, np.float32(0), np.float32(top), levels)
    return levels.reshape(-1, 8, 32) if largest < ROUNDED else None


def _share(values: F32) -> tuple[F32, U8] | None:
    """Groups' scales as 0 to 63 of a block's unit: [n, blocks, 8] → f32 [n, blocks], u8 [n, blocks, 8]. None where
    the highest is so small that its inverse overflows."""
    highest = np.maximum(values.max(2), np.float32(0))
    if ((highest > 0) & (highest < np.float32(1e-36))).any():
        return None
    inverse = np.divide(np.float32(63), highest, out=np.zeros_like(highest), where=highest > 0)
    parts = np.rint(inverse[..., None] * values).astype(np.int32).astype(np.uint8)
    return highest / np.float32(63), np.minimum(parts, 63)


def _pack_scales(parts: U8, out: U8) -> None:
    """Six bits of scale and of minimum for eight groups, in twelve bytes: u8 [2, blocks, 8] → [blocks, 12]."""
    low, high = parts[:, :, :4], parts[:, :, 4:]
    out[:, 0:4] = low[0] | (high[0] >> 4) << 6
    out[:, 4:8] = low[1] | (high[1] >> 4) << 6
    out[:, 8:12] = (high[0] & 15) | (high[1] & 15) << 4


def _encode_q6_k(rows: F32, importance: F32 | None, out: U8) -> bool:
    from vlmexport.quantize import scale_search as search

    blocks, x = out.reshape(-1, 210), rows.reshape(-1, 16)
    weights = np.square(rows) if importance is None else np.broadcast_to(importance, rows.shape)
    guess = np.empty((4, len(x)), np.float32)
    search.signed_scale(x, np.ascontiguousarray(weights).reshape(-1, 16), np.float32(32), guess)
    scales = guess[0].reshape(-1, 16)
    magnitude = np.abs(scales)
    largest = np.take_along_axis(scales, magnitude.argmax(1)[:, None], 1)[:, 0]
    empty = np.abs(largest) < np.float32(1e-15)
    inverse = np.float32(-128) / np.where(empty, np.float32(1), largest)
    held = _halves(np.where(empty, np.float32(0), np.float32(1) / inverse))
    if held is None or not np.isfinite(guess).all():
        return False
    parts = np.minimum(np.rint(inverse[:, None] * scales), 127).astype(np.int8)
    parts[empty] = 0
    scale = (held.astype(np.float32)[:, None] * parts.astype(np.float32)).reshape(-1)
    levels = np.empty(x.shape, np.uint8)
    if search.levels_of(x, scale, np.zeros_like(scale), guess, np.float32(-32), np.float32(31), levels) >= ROUNDED:
        return False
    halves = levels.reshape(-1, 2, 4, 32)
    halves[empty] = 0
    np.bitwise_or(halves[:, :, :2] & 15, halves[:, :, 2:] << 4, out=blocks[:, :128].reshape(-1, 2, 2, 32))
    upper = (halves >> 4) << np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    np.bitwise_or.reduce(upper, axis=2, out=blocks[:, 128:192].reshape(-1, 2, 32))
    blocks[:, 192:208] = parts.view(np.uint8)
    blocks[:, 208:] = held[:, None].view(np.uint8)
    return True


def _halves(values: F32) -> npt.NDArray[np.float16] | None:
    """Values as f16, where all of them fit."""
    if not (np.abs(values) < 65504).all():  # also where one is NaN
        return None
    return values.astype(np.float16)
