"""The searches for scales of llama.cpp's K-quants, compiled for this machine's vector unit.

What libggml does for one group of values at a time is done for ``LANES`` groups at a time, each in its own lane:
within a group every sum keeps its order, so that the scales are the same to the last bit wherever libggml was compiled
without fused multiplication (``k_quants`` finds out).

Source: make_qkx2_quants, make_qkx3_quants, make_qx_quants and make_qp_quants of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlmexport.compiled import compiled

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

LANES = 32
"""Groups beside each other: fewer fill no vector, and those of more do not stay in the first cache."""

ZERO, ONE, TENTH, EPSILON = np.float32(0), np.float32(1), np.float32(0.1), np.float32(1e-15)


@compiled
def lane() -> F32:
    """A number for each lane."""
    return np.empty(LANES, np.float32)


@compiled
def weigh(x: F32, importance: F32, w: F32) -> None:
    """How much the error of each value counts in ``scale_and_minimum``.

    Args:
        x: f32 [groups, 32], 8 groups to a block.
        importance: f32 [groups of a row, 32], or empty where nothing is known about the columns.
        w: f32 [groups, 32], filled in.
    """
    groups, size = x.shape
    columns = importance.shape[0]
    for block in range(0, groups, 8):
        if columns:
            total = ZERO
            for group in range(block, block + 8):
                for i in range(size):
                    total += x[group, i] * x[group, i]
            spread = np.float32(2) * total / np.float32(256)
            for group in range(block, block + 8):
                for i in range(size):
                    v = x[group, i]
                    w[group, i] = importance[group % columns, i] * np.sqrt(spread + v * v)
        else:
            for group in range(block, block + 8):
                total = ZERO
                for i in range(size):
                    total += x[group, i] * x[group, i]
                mean = np.sqrt(total / np.float32(size))
                for i in range(size):
                    w[group, i] = mean + abs(x[group, i])


@compiled
def scale_and_minimum(
    x: F32, w: F32, top: np.float32, first: np.float32, step: np.float32, steps: int, out: F32
) -> None:
    """x ≈ scale · level − minimum with levels 0 to ``top``; the least squared error, weighed, of ``steps + 1`` guesses.

    Args:
        x: f32 [groups, size].
        w: f32 [groups, size] weights of the squared errors.
        top: the highest level.
        first, step: guess i takes (first + step · i + top) levels for a group's range.
        out: f32 [4, groups], filled in: scale, minimum, and what gave the levels of the best guess: they are
            (x − out[3]) · out[2], rounded.
    """
    groups, size = x.shape
    xs = np.empty((size, LANES), np.float32)
    ws, levels = np.empty_like(xs), np.empty_like(xs)
    low, high, sum_w, sum_x = lane(), lane(), lane(), lane()
    inverse, sum_l, sum_l2, sum_xl = lane(), lane(), lane(), lane()
    scale, minimum, error = lane(), lane(), lane()
    best_error, best_scale, best_inverse, best_low = lane(), lane(), lane(), lane()
    fits = np.empty(LANES, np.bool_)
    for start in range(0, groups, LANES):
        for k in range(LANES):
            group = min(start + k, groups - 1)
            for i in range(size):
                xs[i, k], ws[i, k] = x[group, i], w[group, i]
        for k in range(LANES):
            low[k], high[k], sum_w[k], sum_x[k] = xs[0, k], xs[0, k], ws[0, k], ws[0, k] * xs[0, k]
        for i in range(1, size):
            for k in range(LANES):
                v = xs[i, k]
                low[k], high[k] = min(low[k], v), max(high[k], v)
                sum_w[k] += ws[i, k]
                sum_x[k] += ws[i, k] * v
        for k in range(LANES):
            low[k] = min(low[k], ZERO)
            inverse[k] = top / (high[k] - low[k])
            best_scale[k], best_inverse[k], best_low[k], best_error[k] = ONE / inverse[k], inverse[k], low[k], ZERO
        for i in range(size):
            for k in range(LANES):
                level = min(max(np.rint(inverse[k] * (xs[i, k] - low[k])), ZERO), top)
                difference = best_scale[k] * level + low[k] - xs[i, k]
                best_error[k] += ws[i, k] * (difference * difference)
        for guess in range(steps + 1):
            reach = first + step * np.float32(guess) + top
            for k in range(LANES):
                inverse[k] = reach / (high[k] - low[k])
                sum_l[k], sum_l2[k], sum_xl[k], error[k] = ZERO, ZERO, ZERO, ZERO
            for i in range(size):
                for k in range(LANES):
                    level = min(max(np.rint(inverse[k] * (xs[i, k] - low[k])), ZERO), top)
                    levels[i, k] = level
                    weighed = ws[i, k] * level
                    sum_l[k] += weighed
                    sum_l2[k] += weighed * level
                    sum_xl[k] += weighed * xs[i, k]
            for k in range(LANES):
                determinant = sum_w[k] * sum_l2[k] - sum_l[k] * sum_l[k]
                fits[k] = determinant > ZERO
                scale[k] = (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / determinant
                minimum[k] = (sum_l2[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / determinant
                positive = minimum[k] > ZERO
                scale[k] = sum_xl[k] / sum_l2[k] if positive else scale[k]
                minimum[k] = ZERO if positive else minimum[k]
            for i in range(size):
                for k in range(LANES):
                    difference = scale[k] * levels[i, k] + minimum[k] - xs[i, k]
                    error[k] += ws[i, k] * (difference * difference)
            for k in range(LANES):
                better = fits[k] and error[k] < best_error[k]
                best_error[k] = error[k] if better else best_error[k]
                best_scale[k] = scale[k] if better else best_scale[k]
                best_inverse[k] = inverse[k] if better else best_inverse[k]
                best_low[k] = low[k] if better else best_low[k]
                low[k] = minimum[k] if better else low[k]  # the next guess starts from it
        for k in range(min(LANES, groups - start)):
            flat = high[k] <= best_low[k]
            out[0, start + k] = ZERO if flat else best_scale[k]
            out[1, start + k] = -best_low[k] if flat else -low[k]
            out[2, start + k] = ZERO if flat else best_inverse[k]
            out[3, start + k] = best_low[k]


@compiled
def signed_scale(x: F32, w: F32, top: np.float32, out: F32) -> None:
    """x ≈ scale · level with levels −top to top − 1; the best of 19 guesses.

    Args:
        x: f32 [groups, size].
        w: f32 [groups, size] weights of the squared errors.
        top: minus the lowest level.
        out: f32 [4, groups], filled in as by ``scale_and_minimum``; the minimum is 0.
    """
    groups, size = x.shape
    xs = np.empty((size, LANES), np.float32)
    ws = np.empty_like(xs)
    largest, magnitude, inverse, sum_xl, sum_l2 = lane(), lane(), lane(), lane(), lane()
    scale, best, best_inverse = lane(), lane(), lane()
    for start in range(0, groups, LANES):
        for k in range(LANES):
            group = min(start + k, groups - 1)
            for i in range(size):
                xs[i, k], ws[i, k] = x[group, i], w[group, i]
            largest[k], magnitude[k], scale[k], best[k], best_inverse[k] = ZERO, ZERO, ZERO, ZERO, ZERO
        for i in range(size):
            for k in range(LANES):
                v = xs[i, k]
                larger = abs(v) > magnitude[k]
                largest[k] = v if larger else largest[k]
                magnitude[k] = abs(v) if larger else magnitude[k]
        for turn in range(19):
            guess = turn - 10 + int(turn > 9) if turn else 0  # 0 first, then -9 to -1 and 1 to 9
            for k in range(LANES):
                inverse[k] = -(top + TENTH * np.float32(guess)) / largest[k]
                sum_xl[k], sum_l2[k] = ZERO, ZERO
            for i in range(size):
                for k in range(LANES):
                    level = min(max(np.rint(inverse[k] * xs[i, k]), -top), top - ONE)
                    sum_xl[k] += ws[i, k] * xs[i, k] * level
                    sum_l2[k] += ws[i, k] * level * level
            for k in range(LANES):
                better = sum_l2[k] > ZERO and (guess == 0 or sum_xl[k] * sum_xl[k] > best[k] * sum_l2[k])
                scale[k] = sum_xl[k] / sum_l2[k] if better else scale[k]
                best[k] = scale[k] * sum_xl[k] if better else best[k]
                best_inverse[k] = inverse[k] if better or guess == 0 else best_inverse[k]
        for k in range(min(LANES, groups - start)):
            flat = magnitude[k] < EPSILON
            out[0, start + k] = ZERO if flat else scale[k]
            out[1, start + k] = ZERO
            out[2, start + k] = ONE if flat else best_inverse[k]
            out[3, start + k] = top if flat else ZERO  # every level the lowest


@compiled
def common_scale(x: F32, w: F32, top: int, levels: U8, scale: F32) -> None:
    """x ≈ scale · level with levels 0 to ``top``, for the scales of a block themselves, where columns are weighed.

    Args:
        x: f32 [blocks, groups], none negative.
        w: f32 [blocks, groups] weights of the squared errors.
        levels: u8 [blocks, groups], filled in.
        scale: f32 [blocks], filled in.
    """
    blocks, size = x.shape
    limit = np.float32(top)
    found = np.empty(size, np.float32)
    for block in range(blocks):
        values, weights = x[block], w[block]
        highest = ZERO
        for i in range(size):
            highest = max(highest, values[i])
        if highest < EPSILON:
            levels[block] = 0
            scale[block] = ZERO
            continue
        inverse, best = limit / highest, ZERO
        for i in range(size):
            difference = values[i] - ONE / inverse * np.rint(inverse * values[i])
            best += weights[i] * difference * difference
        for guess in range(-4, 5):
            tried, error = (TENTH * np.float32(guess) + limit) / highest, ZERO
            for i in range(size):
                difference = values[i] - ONE / tried * min(np.rint(tried * values[i]), limit)
                error += weights[i] * difference * difference
            if guess != 0 and error < best:
                best, inverse = error, tried
        sum_xl, sum_l2 = ZERO, ZERO
        for i in range(size):
            found[i] = min(np.rint(inverse * values[i]), limit)
            sum_xl += weights[i] * values[i] * found[i]
            sum_l2 += weights[i] * found[i] * found[i]
        for _ in range(5):
            changed = False
            for i in range(size):
                rest_xl = sum_xl - weights[i] * values[i] * found[i]
                rest_l2 = sum_l2 - weights[i] * found[i] * found[i]
                if rest_xl > ZERO and rest_l2 > ZERO:
                    level = min(np.rint(values[i] * rest_l2 / rest_xl), limit)
                    if level != found[i]:
                        rest_xl += weights[i] * values[i] * level
                        rest_l2 += weights[i] * level * level
                        if rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2:
                            found[i], sum_xl, sum_l2, changed = level, rest_xl, rest_l2, True
            if not changed:
                break
        for i in range(size):
            levels[block, i] = np.uint8(found[i])
        scale[block] = sum_xl / sum_l2 if sum_l2 > ZERO else ZERO


@compiled
def levels_of(x: F32, scale: F32, minimum: F32, guess: F32, low: np.float32, high: np.float32, out: U8) -> float:
    """Each value's level under the scales that the file holds; where such a scale is 0, the level that the search took.

    Args:
        x: f32 [groups, size].
        scale, minimum: f32 [groups], as the file holds them.
        guess: f32 [4, groups], what the search found.
        low, high: the levels' range.
        out: u8 [groups, size], filled in: level − low.

    Returns:
        The largest magnitude before the range was applied; libggml rounds only what is below 2**22.
    """
    largest = ZERO
    groups, size = x.shape
    for group in range(groups):
        plain = scale[group] == ZERO
        divisor = ONE if plain else scale[group]
        factor = guess[2, group] if plain else ONE
        shift = -guess[3, group] if plain else minimum[group]
        for i in range(size):
            level = np.rint(factor * ((x[group, i] + shift) / divisor))
            largest = max(largest, abs(level))
            out[group, i] = np.uint8(min(max(level, low), high) - low)
    return float(largest)
