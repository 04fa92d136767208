"""Block-wise weights against ONNX Runtime's own quantizer, and what rounding guarantees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from vlmexport.quantize import blocks

KERNELS = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}


def random(rows: int, columns: int, seed: int, dtype: str = "f32") -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(TYPES[dtype])


def quantize(weight: torch.Tensor, dtype: str, bits: int, block: int) -> tuple[blocks.U8, blocks.F32]:
    return blocks.quantize(weight.reshape(-1).view(torch.uint8).numpy(), dtype, weight.shape[1], bits, block)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_the_bytes_of_onnxruntime(dtype: str, bits: int, block: int) -> None:
    weight = random(24, 256, bits * block, dtype)
    weight[3, :140] = 0
    weight[4] *= 2.0**-20  # subnormal as f16
    rows, count = 24, 256 // block
    levels = np.zeros((rows, count, block * bits // 8), np.uint8)
    scales, zeros = np.zeros(rows * count, np.float32), np.zeros(rows * ((count * bits + 7) // 8), np.uint8)
    float32 = weight.float().numpy()
    KERNELS[bits](levels, np.ascontiguousarray(float32.T), scales, zeros, block, rows, 256, True)
    got, got_scales = quantize(weight, dtype, bits, block)
    np.testing.assert_array_equal(got_scales.reshape(-1), scales)
    np.testing.assert_array_equal(got, levels)


@given(st.integers(1, 5), st.integers(1, 80), st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.floats(1e-4, 1e3))
def test_no_value_is_further_off_than_half_a_step(rows: int, columns: int, bits: int, block: int, size: float) -> None:
    weight = random(rows, columns, rows * columns) * size
    levels, scales = quantize(weight, "f32", bits, block)
    back = blocks.dequantize(levels, scales, bits, columns)
    steps = np.repeat(np.abs(scales), block, 1)[:, :columns]
    # The opposite end of the range has one level less: a value there may be a whole step off.
    assert (np.abs(back - weight.numpy()) <= steps * 1.0001).all()
    assert np.median(np.abs(back - weight.numpy()) / np.maximum(steps, 1e-30)) <= 0.5


@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from([16, 32, 128]), st.integers(0, 99))
@settings(deadline=None)  # the first call compiles
@example(2, 2, 16, 43)  # one weight is 300,000 times the other
def test_a_search_never_loses(rows: int, columns: int, block: int, seed: int) -> None:
    weight = random(rows, columns, seed) ** 3
    importance = (random(1, columns, seed + 1)[0] ** 4).numpy()
    raw = weight.reshape(-1).view(torch.uint8).numpy()
    errors = []
    for given_ in (None, importance):
        back = blocks.dequantize(*blocks.quantize(raw, "f32", columns, 4, block, given_), 4, columns)
        errors.append(float((importance * (back - weight.numpy()).astype(np.float64) ** 2).sum()))
    assert errors[1] <= errors[0] * 1.0001 + 1e-12


def test_a_search_gains() -> None:
    weight, importance = random(64, 512, 1), np.exp(2 * random(1, 512, 2)[0].numpy())
    raw = weight.reshape(-1).view(torch.uint8).numpy()
    errors = []
    for given_ in (None, importance):
        back = blocks.dequantize(*blocks.quantize(raw, "f32", 512, 4, 32, given_), 4, 512)
        errors.append(float((importance * (back - weight.numpy()) ** 2).sum()))
    assert errors[1] < 0.75 * errors[0]


def test_a_block_of_zeros() -> None:
    levels, scales = quantize(torch.zeros(1, 32), "f32", 4, 32)
    assert not blocks.dequantize(levels, scales, 4, 32).any()
