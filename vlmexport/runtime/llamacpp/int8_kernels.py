"""The int8 kernels that llama.cpp was compiled with."""

from __future__ import annotations

_LLAMA_CPP = {
    "AMX_INT8": "AMX", "AVX512_VNNI": "VNNI", "AVX_VNNI": "VNNI", "AVX512": "AVX-512 without VNNI",
    "AVX2": "AVX2 without VNNI", "MATMUL_INT8": "i8mm", "DOTPROD": "dot product", "NEON": "NEON", "SSSE3": "SSSE3",
}  # fmt: skip
"""Its names, the best of each machine first."""


def compiled_kernels(features: str) -> str:
    """The best of what llama.cpp says that it was compiled with (``AVX2 = 1 | AVX512_VNNI = 1``)."""
    has = {item.rpartition(":")[2].partition("=")[0].strip() for item in features.split("|") if "= 1" in item}
    return next((name for feature, name in _LLAMA_CPP.items() if feature in has), "plain C")
