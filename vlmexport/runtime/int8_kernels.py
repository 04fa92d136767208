"""Which int8 kernels a runtime has where it runs, and whether they saturate.

``vpmaddubsw`` of AVX2 (and of AVX-512 without VNNI) adds two products of U8 and S8 in 16 bits and stops at their ends.
VNNI, AMX and arm64 add them in 32 bits. ONNX Runtime multiplies S8 by S8 exactly on all of them. What a processor says
of itself is not what a library makes of it, so the library is asked: for a product that does not fit into 16 bits.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from vlmexport.runtime.ort.sessions import MACHINES, LocalSessions, Sessions

_LLAMA_CPP = {
    "AMX_INT8": "AMX", "AVX512_VNNI": "VNNI", "AVX_VNNI": "VNNI", "AVX512": "AVX-512 without VNNI",
    "AVX2": "AVX2 without VNNI", "MATMUL_INT8": "i8mm", "DOTPROD": "dot product", "NEON": "NEON", "SSSE3": "SSSE3",
}  # fmt: skip
"""Its names, the best of each machine first."""

_PRODUCT = b64decode(
    "CAo6egomCgZsZXZlbHMKB3dlaWdodHMSBHN1bXMiDU1hdE11bEludGVnZXISAWcqEwgCCAEQA0IHd2VpZ2h0c0oCf39aHAoGbGV2ZWxzEhIK"
    "EAgCEgwKBhIEcm93cwoCCAJiGgoEc3VtcxISChAIBhIMCgYSBHJvd3MKAggBQgQKABAV"
)
"""A graph: ``levels`` u8 [rows, 2] times the weights i8 [2, 1], both 127 → ``sums`` i32 [rows, 1]. In this form because
a bundle runs where the package onnx is not; tests/runtime/test_int8_kernels.py makes it."""

_LEVEL, _SUM = 255, 2 * 255 * 127
"""The largest level, and what two of them give: int16 ends at 32,767."""


@dataclass(frozen=True)
class Int8Kernels:
    """What multiplies the int8 layers of a bundle.

    Attributes:
        name: of the instructions, e.g. ``VNNI``.
        saturates: a sum of two products of U8 and S8 stops at the ends of 16 bits.
        layers: products of the bundle that can lose something by that; None where they were not counted.
    """

    name: str
    saturates: bool = False
    layers: int | None = None

    def __str__(self) -> str:
        if not self.saturates:
            return self.name
        if self.layers == 0:
            return f"{self.name} (no layer can saturate)"
        return f"{self.name}, which can saturate{'' if self.layers is None else f' in {self.layers} layers'}"

    def notes(self, is_bounded: bool) -> tuple[str, ...]:
        """What a verdict must say; nothing where nothing is lost.

        Args:
            is_bounded: the bundle was made for such kernels, too (``saturation = "avx2"``).
        """
        if not self.layers:
            return ()
        cure = "" if is_bounded else '; an export with `saturation = "avx2"` is made for both'
        return (
            f"the int8 kernels that this ran on ({self.name}) add two products of U8 and S8 in 16 bits and stop at the "
            f"ends, so {self.layers} layers of this bundle can give something else on VNNI and on arm64{cure}",
        )


@runtime_checkable
class Int8(Protocol):
    """A runtime that can name its int8 kernels."""

    def kernels(self) -> Int8Kernels | None:
        """Those that it has where it runs; None where it needs none."""


def kernels_of(runtime: object) -> Int8Kernels | None:
    """A runtime's, where it can name them."""
    return runtime.kernels() if isinstance(runtime, Int8) else None


def find_kernels(sessions: Sessions) -> Int8Kernels:
    """The kernels that run where the sessions run."""
    sessions.open("kernels", Path("kernels.onnx"), 1, _PRODUCT)
    sums = sessions.run("kernels", {"levels": np.full((4, 2), _LEVEL, np.uint8)})["sums"]
    saturates = bool((sums < _SUM).any())
    return Int8Kernels(_name(sessions.machine, sessions.instructions, saturates), saturates)


@cache
def kernels_here() -> Int8Kernels:
    """Those of ONNX Runtime in this process."""
    return find_kernels(LocalSessions())


def _name(machine: str, instructions: list[str], saturates: bool) -> str:
    """The instructions that kernels of this behaviour use. VNNI alone, on x86, adds U8 and S8 exactly."""
    if machine not in MACHINES["x86"]:
        none_told = "NEON" if machine in MACHINES["arm64"] else machine
        return next((name for name in ("i8mm", "dot product") if name in instructions), none_told)
    if not saturates:
        return "VNNI"
    return "AVX-512 without VNNI" if "AVX-512" in instructions else "AVX2 without VNNI"


def compiled_kernels(features: str) -> str:
    """The best of what llama.cpp says that it was compiled with (``AVX2 = 1 | AVX512_VNNI = 1``)."""
    has = {item.rpartition(":")[2].partition("=")[0].strip() for item in features.split("|") if "= 1" in item}
    return next((name for feature, name in _LLAMA_CPP.items() if feature in has), "plain C")
