"""GPTQ against rounding to nearest, by the error it is there to lessen: that of the products."""

from __future__ import annotations

import numpy as np
import pytest

from vlmexport.quantize import blocks, gptq


def correlated(columns: int, seed: int) -> np.ndarray:
    """f32 mean x·xᵀ of inputs whose columns have to do with each other."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((4 * columns, columns)) @ random.standard_normal((columns, columns)) * 0.1
    inputs = (mixed + random.standard_normal((4 * columns, columns))) * np.exp(random.standard_normal(columns))
    return np.asarray(inputs.T @ inputs / len(inputs), np.float32)


def error(parts: tuple[np.ndarray, np.ndarray], weight: np.ndarray, hessian: np.ndarray) -> float:
    """Mean squared error of the products: the trace of D·H·Dᵀ."""
    difference = blocks.dequantize(*parts, 4, weight.shape[1]).astype(np.float64) - weight
    return float(np.einsum("ij,jk,ik->", difference, hessian, difference, optimize=True))


@pytest.mark.parametrize(("columns", "block"), [(256, 32), (256, 128), (200, 64), (40, 16)])
def test_products_are_closer(columns: int, block: int) -> None:
    hessian = correlated(columns, columns)
    weight = np.random.default_rng(1).standard_normal((48, columns)).astype(np.float32)
    importance = np.ascontiguousarray(hessian.diagonal())
    searched = blocks.quantize(weight.view(np.uint8).reshape(-1), "f32", columns, 4, block, importance)
    rounded = gptq.quantize(weight, hessian, block)
    assert [part.shape for part in rounded] == [part.shape for part in searched]
    assert [part.dtype for part in rounded] == [part.dtype for part in searched]
    assert error(rounded, weight, hessian) < 0.8 * error(searched, weight, hessian)


def test_columns_that_have_nothing_to_do_with_each_other() -> None:
    weight = np.random.default_rng(2).standard_normal((16, 128)).astype(np.float32)
    hessian = np.eye(128, dtype=np.float32)
    nearest = blocks.quantize(weight.view(np.uint8).reshape(-1), "f32", 128, 4, 32)
    assert error(gptq.quantize(weight, hessian, 32), weight, hessian) < error(nearest, weight, hessian)


def test_columns_and_rows_of_zeros() -> None:
    hessian = correlated(64, 3)
    hessian[5], hessian[:, 5] = 0, 0
    weight = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    weight[2] = 0
    back = blocks.dequantize(*gptq.quantize(weight, hessian, 32), 4, 64)
    assert np.isfinite(back).all()
    assert not back[2].any()
    assert np.abs(back - weight).max() < 1.5


def test_nothing_went_in() -> None:
    weight = np.random.default_rng(4).standard_normal((4, 32)).astype(np.float32)
    back = blocks.dequantize(*gptq.quantize(weight, np.zeros((32, 32), np.float32), 32), 4, 32)
    assert np.isfinite(back).all()
