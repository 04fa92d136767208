"""The memory that this process holds. Workers import it: it needs no packages."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int | None:
    """Peak resident size as the operating system counts it, mapped pages included; None on Windows.

    Linux is asked for ``VmHWM``: its ``ru_maxrss`` begins at what the parent process held.
    """
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def give_back() -> None:
    """Return to the system what the C library keeps of small things that are gone: large ones come beside it. Where it
    is not glibc, nothing is done."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
