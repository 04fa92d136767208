"""How long llama.cpp's dot product of each GGUF type takes on one core, against q4_k: what decoding costs but memory.

    python benchmarks/dot_products.py

All types in turn, sixty rounds in one run, best of each; 131,072 weights of a type lie in the cache.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import numpy as np

from vlmexport.quantize import ggml

WEIGHTS, ROUNDS = 1 << 17, 60
KINDS = ("q2_k", "iq2_xs", "iq2_s", "q3_k", "iq3_xxs", "iq3_s", "q4_0", "q4_k", "iq4_xs", "q5_k", "q6_k", "q8_0")


class Traits(ctypes.Structure):
    """``ggml_type_traits_cpu`` of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.CFUNCTYPE(
            None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p,
            ctypes.c_size_t, ctypes.c_int,
        )),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )  # fmt: skip


def library() -> Any:
    """libggml-cpu, ready."""
    found = ctypes.CDLL(str(ggml.library_path("ggml-cpu")))
    found.ggml_cpu_init()
    found.ggml_get_type_traits_cpu.restype = ctypes.POINTER(Traits)
    return found


def measure() -> dict[str, float]:
    """Type → seconds of one dot product of ``WEIGHTS`` values."""
    cpu = library()
    values = np.random.default_rng(0).standard_normal((1, WEIGHTS)).astype(np.float32)
    result, calls = ctypes.c_float(), {}
    for kind in KINDS:
        traits = cpu.ggml_get_type_traits_cpu(ggml.TYPES[kind].id).contents
        weights = ggml.quantize(values, kind, np.ones(WEIGHTS, np.float32))
        inputs = np.zeros(2 * WEIGHTS, np.uint8)
        partner = cpu.ggml_get_type_traits_cpu(traits.vec_dot_type).contents
        partner.from_float(values.ctypes.data, inputs.ctypes.data, WEIGHTS)
        calls[kind] = (traits.vec_dot, weights, inputs)
    best = dict.fromkeys(KINDS, float("inf"))
    for _ in range(ROUNDS):
        for kind, (dot, weights, inputs) in calls.items():
            start = time.perf_counter()
            dot(WEIGHTS, ctypes.addressof(result), 0, weights.ctypes.data, 0, inputs.ctypes.data, 0, 1)
            best[kind] = min(best[kind], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    seconds = measure()
    for kind, value in seconds.items():
        print(f"{kind:8} {seconds[kind] / seconds['q4_k']:.2f} of q4_k, {WEIGHTS / value / 1e9:.1f} G weights/s")
