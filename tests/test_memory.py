"""Memory of a process as the operating system counts it."""

from __future__ import annotations

import subprocess
import sys

import pytest

KEPT = """
import ctypes
from pathlib import Path
from vlmexport.workers.memory import give_back

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

library = ctypes.CDLL("libc.so.6")
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
pieces = [library.malloc(50_000) for _ in range(1_000)]
for piece in pieces:
    library.memset(piece, 1, 50_000)
last = library.malloc(50_000)  # what is free lies before it
for piece in pieces:
    library.free(piece)
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_free_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 40_000_000
