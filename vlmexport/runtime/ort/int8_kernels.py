"""The int8 kernels of ONNX Runtime where sessions run. What a processor says of itself is not what a library makes of
it, so the library is asked: for a product that does not fit into 16 bits.
"""

from __future__ import annotations

from base64 import b64decode
from functools import cache
from pathlib import Path

import numpy as np

from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.ort.sessions import MACHINES, LocalSessions, Sessions

_PRODUCT = b64decode(
    "CAo6egomCgZsZXZlbHMKB3dlaWdodHMSBHN1bXMiDU1hdE11bEludGVnZXISAWcqEwgCCAEQA0IHd2VpZ2h0c0oCf39aHAoGbGV2ZWxzEhIK"
    "EAgCEgwKBhIEcm93cwoCCAJiGgoEc3VtcxISChAIBhIMCgYSBHJvd3MKAggBQgQKABAV"
)
"""A graph: ``levels`` u8 [rows, 2] times the weights i8 [2, 1], both 127 → ``sums`` i32 [rows, 1]. In this form because
a bundle runs where the package onnx is not; tests/runtime/test_int8_kernels.py makes it."""

_LEVEL, _SUM = 255, 2 * 255 * 127
"""The largest level, and what two of them give: int16 ends at 32,767."""


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
