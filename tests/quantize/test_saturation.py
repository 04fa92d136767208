from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantize.graphs import observed
from vlmexport.quantize.choice import Limits, choose, choose_for_avx2
from vlmexport.quantize.ranges import Range, quantize_weight, weight_scales
from vlmexport.quantize.saturation import lost
from vlmexport.quantize.schemes import find_scheme

SCHEME = find_scheme("fbgemm")
LIMITS = Limits(-100.0, -100.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.floats(0.1, 3))
def test_equals_a_plain_model_of_the_instruction(
    count: int, columns: int, outputs: int, seed: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    rows = (np.abs(random.standard_normal((count, columns))) * spread).astype(np.float32)
    weight = random.standard_normal((columns, outputs)).astype(np.float32)
    span = Range(0.0, 1.0)
    scale, zero = span.parameters(SCHEME)
    levels = np.clip(np.round(rows / scale) + zero, 0, 255).astype(int)
    scales = weight_scales(weight, 1, SCHEME)
    integers = quantize_weight(weight, scales, 1, SCHEME).astype(int)
    error, cut = np.zeros((count, outputs)), 0
    for k in range(0, columns, 2):
        exact = levels[:, k : k + 2] @ integers[k : k + 2]
        stopped = np.clip(exact, -(2**15), 2**15 - 1)
        error += (exact - stopped) * scales * scale
        cut += int((exact != stopped).sum())
    share, power = lost(rows, weight, span, SCHEME)
    assert share == cut / (count * outputs * (columns + columns % 2) / 2)
    assert np.isclose(power, np.square(error).sum() / count, rtol=1e-4)


def test_half_the_levels_and_signed_inputs_lose_nothing() -> None:
    rows, weight = np.ones((4, 8), np.float32), np.ones((8, 3), np.float32)
    assert lost(rows, weight, Range(0, 1), SCHEME)[0] == 1.0
    assert lost(rows, weight, Range(0, 1), SCHEME.reduced()) == (0.0, 0.0)
    assert lost(rows, weight, Range(0, 1), find_scheme("qnnpack")) == (0.0, 0.0)


def test_half_the_levels_only_where_more_is_lost() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 32)).astype(np.float32)
    gentle = random.standard_normal((32, 8)).astype(np.float32)
    gentle[0] = 8  # what sets the scale; the others stay far below it
    harsh = np.repeat(np.sign(gentle[::2]), 2, 0)  # both of a pair pull the same way, as hard as they can
    layer, span = observed(rows), Range(float(rows.min()), float(rows.max()))
    for weight, saturates in ((gentle, False), (harsh, True)):
        found = choose_for_avx2([weight], layer, span, SCHEME, False, LIMITS)
        assert found is not None
        assert (found.scheme == SCHEME.reduced()) == saturates
        assert (found.saturates > 0) == saturates
        assert saturates or found == choose([weight], layer, span, SCHEME, False, LIMITS)
