"""Which of the instructions that int8 kernels differ by a processor has.

The process that runs ONNX Runtime for arm64 imports this: of packages, NumPy alone.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import numpy as np

_AUXILIARY = Path("/proc/self/auxv")
_ARM64 = {"dot product": (16, 20), "i8mm": (26, 13)}
"""Entry of the auxiliary vector (AT_HWCAP, AT_HWCAP2) and bit in it; Linux, arch/arm64/include/uapi/asm/hwcap.h."""

_X86 = {"AVX2": {"AVX2", "X86_V3"}, "AVX-512": {"AVX512_SKX", "X86_V4"}}
"""What NumPy calls them, which asks the processor (``cpuid``) as ONNX Runtime does; older and newer names."""


def instructions() -> list[str]:
    """Of the table of this machine, what this core has; none where nothing here can tell."""
    if platform.machine() == "aarch64" and _AUXILIARY.is_file():
        entries = dict(struct.iter_unpack("<QQ", _AUXILIARY.read_bytes()))
        return [name for name, (entry, bit) in _ARM64.items() if entries.get(entry, 0) >> bit & 1]
    configuration = np.show_config(mode="dicts") or {}
    found = set(configuration.get("SIMD Extensions", {}).get("found", ()))
    return [name for name, names in _X86.items() if found & names]
