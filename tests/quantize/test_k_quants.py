"""The fast K-quants give libggml's own bytes, or step aside."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlmexport.quantize import ggml, k_quants
from vlmexport.quantize.ggml import F32, U8, by_libggml

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="libggml may be compiled with fused multiplication here, and then libggml itself does the work",
)
types = pytest.mark.parametrize("name", k_quants.TYPES)


def fast(name: str) -> Callable[[F32, F32 | None, U8], bool]:
    found = k_quants.encoder(name, by_libggml)
    assert found is not None, f"the fast {name} does not agree with libggml"
    return found


@types
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_same_bytes_as_libggml(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.standard_normal((rows, 512), np.float32) ** data.draw(st.sampled_from([1, 3, 9]))
    values *= np.float32(10.0 ** data.draw(st.integers(-12, 3)))
    values += np.float32(data.draw(st.sampled_from([0, 0, 0.01, -1, 1])))
    values = np.clip(values, -6e4, 6e4)
    if data.draw(st.booleans()):
        values = values.astype(np.float16).astype(np.float32)
    importance = rng.random(512, np.float32) ** 4 if data.draw(st.booleans()) else None
    found = np.empty((rows, ggml.row_bytes(name, 512)), np.uint8)
    if fast(name)(values, importance, found):
        np.testing.assert_array_equal(found, by_libggml(values, name, importance))
    np.testing.assert_array_equal(ggml.quantize(values, name, importance), by_libggml(values, name, importance))


@types
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_same_bytes_for_any_numbers(name: str, data: st.DataObject) -> None:
    """Also zeros, equal values, the smallest and the largest numbers: where the fast way cannot, libggml does it."""
    numbers = st.floats(-1e5, 1e5, width=32) | st.sampled_from([0.0, -0.0, 1e-40, -1e-38, 1e-15, 1.0, -1.0, 6e4])
    values = data.draw(arrays(np.float32, (1, 256), elements=numbers, fill=st.sampled_from([0.0, 1.0, -0.5])))
    importance = data.draw(st.none() | arrays(np.float32, 256, elements=st.floats(0, 1e4, width=32)))
    np.testing.assert_array_equal(ggml.quantize(values, name, importance), by_libggml(values, name, importance))


@types
def test_a_library_that_rounds_otherwise_is_left_to_itself(name: str) -> None:
    """One bit in one block of the samples is enough."""

    def other(rows: F32, type_name: str, importance: F32 | None) -> U8:
        found = by_libggml(rows, type_name, importance)
        found[20, 7] ^= 1
        return found

    assert k_quants.encoder(name, other) is None


def test_other_types_are_left_to_libggml() -> None:
    assert k_quants.encoder("q4_0", by_libggml) is None
