"""Widening is exact for every 16-bit value, and no NaN or infinity gets through."""

from __future__ import annotations

import numpy as np
import pytest

from vlmexport.checkpoint.tensors import to_float32
from vlmexport.quantize.floats import all_finite, first_bad, widen

EVERY = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize(("dtype", "exponent"), [("f16", 0x7C00), ("bf16", 0x7F80)])
def test_every_finite_value_is_widened_exactly(dtype: str, exponent: int) -> None:
    finite = EVERY[(EVERY & exponent) != exponent].view(np.uint8)
    found = widen(finite, dtype, np.empty(finite.size // 2, np.float32))
    assert np.array_equal(found.view(np.uint32), to_float32(finite, dtype).view(np.uint32))
    assert all_finite(finite, dtype)


@pytest.mark.parametrize(("dtype", "exponent"), [("f16", 0x7C00), ("bf16", 0x7F80)])
def test_every_other_value_is_found(dtype: str, exponent: int) -> None:
    for bits in EVERY[(EVERY & exponent) == exponent]:
        values = np.array([0x3C00, 0x8000, bits, 0], np.uint16).view(np.uint8)
        assert not all_finite(values, dtype)
        assert first_bad(values, dtype) == 2


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_wide_values(dtype: str, bad: float) -> None:
    kind = {"f32": np.float32, "f64": np.float64}[dtype]
    good = np.array([1, -2, np.finfo(np.float32).max, 0], kind)
    assert all_finite(good.view(np.uint8), dtype)
    assert np.array_equal(widen(good.view(np.uint8), dtype, np.empty(4, np.float32)), good.astype(np.float32))
    good[3] = bad
    assert first_bad(good.view(np.uint8), dtype) == 3
    assert not all_finite(good.view(np.uint8), dtype)


def test_integers_are_widened() -> None:
    values = np.array([-3, 7], np.int8)
    assert widen(values.view(np.uint8), "i8", np.empty(2, np.float32)).tolist() == [-3, 7]
    assert all_finite(np.empty(0, np.uint8), "f16")
