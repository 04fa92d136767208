"""A small Q/DQ graph in NumPy, its products in integers: exactly, or as AVX2 without VNNI adds them.

Whatever processor the tests run on, this says what ONNX Runtime's kernels compute there, and what elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

F32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer[Any]]
I64 = npt.NDArray[np.int64]


def vpmaddubsw(levels: Integers, weight: Integers) -> I64:
    """U8 [..., rows, columns] times S8 [columns, outputs]: sums of two products stop at the ends of int16."""
    a, b = levels.astype(np.int64), weight.astype(np.int64)
    total = np.zeros((*a.shape[:-1], b.shape[1]), np.int64)
    for k in range(0, len(b), 2):
        total += np.clip(a[..., k : k + 2] @ b[k : k + 2], -(2**15), 2**15 - 1)
    return total


def multiply(levels: Integers, weight: Integers, saturates: bool) -> I64:
    """A product of integers as kernels compute it: pairs of S8 by S8 never leave int16, which stops at U8 by S8."""
    if saturates and levels.dtype == np.uint8:
        return vpmaddubsw(levels, weight)
    return levels.astype(np.int64) @ weight.astype(np.int64)


@dataclass(frozen=True)
class Dequantized:
    """What ``DequantizeLinear`` reads; scale and zero point of one value, or of one a column."""

    levels: Integers
    scale: F32
    zero: Integers

    def real(self) -> F32:
        """The values."""
        return ((self.levels.astype(np.int64) - self.zero) * self.scale).astype(np.float32)


def simulate(model: ir.Model, x: F32, saturates: bool) -> F32:
    """The output of a graph of weight products.

    Args:
        saturates: products are those of AVX2 without VNNI.
    """

    def matmul(a: Dequantized | F32, b: Dequantized | F32) -> F32:
        if not isinstance(a, Dequantized) or not isinstance(b, Dequantized):
            return real(a) @ real(b)
        assert not b.zero.any()
        sums = multiply(a.levels, b.levels, saturates) - int(a.zero.item()) * b.levels.astype(np.int64).sum(0)
        found: F32 = (sums * (a.scale.astype(np.float64) * b.scale)).astype(np.float32)
        return found

    operators: dict[str, Callable[..., Any]] = {
        "QuantizeLinear": _quantize, "DequantizeLinear": Dequantized, "MatMul": matmul,
        "Add": lambda a, b: real(a) + real(b), "Sub": lambda a, b: real(a) - real(b),
        "Mul": lambda a, b: real(a) * real(b),
    }  # fmt: skip
    values: dict[Any, Any] = {model.graph.inputs[0]: x}
    for node in model.graph:
        given = [_constant(value) if value not in values else values[value] for value in node.inputs]
        values[node.outputs[0]] = operators[node.op_type](*given)
    return real(values[model.graph.outputs[0]])


def real(value: Dequantized | F32) -> F32:
    """In float32."""
    return value.real() if isinstance(value, Dequantized) else value


def _quantize(x: Dequantized | F32, scale: F32, zero: Integers) -> Integers:
    ends = np.iinfo(zero.dtype)
    return np.clip(np.rint(real(x) / scale) + zero.astype(np.int64), ends.min, ends.max).astype(zero.dtype)


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
