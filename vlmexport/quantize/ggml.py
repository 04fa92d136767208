"""libggml's own quantization kernels, called through ctypes: float32 rows in, GGUF row bytes out.

``ggml_quantize_chunk`` of libggml-base is what ``llama_model_quantize`` calls, so the bytes are the same. It makes the
tables of the iq types itself, once, under a lock (``ggml_quantize_init``). iq2_xs without importance aborts the
process: ``gguf_mix.needs_importance`` says so before.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import MissingDependency
from vlmexport.quantize import k_quants

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

INSTALL = "pip install 'vlmexport[gguf]'"


@dataclass(frozen=True)
class GgmlType:
    """A tensor type of GGUF: its number there, values in a block, bytes of a block, and the first and the end of those
    that are f16 scales. Source: ggml-common.h."""

    id: int
    block: int
    bytes: int
    scales: tuple[int, int] = (0, 2)


TYPES = {
    "f32": GgmlType(0, 1, 4, (0, 0)),
    "f16": GgmlType(1, 1, 2),
    "q4_0": GgmlType(2, 32, 18),
    "q4_1": GgmlType(3, 32, 20, (0, 4)),
    "q5_0": GgmlType(6, 32, 22),
    "q5_1": GgmlType(7, 32, 24, (0, 4)),
    "q8_0": GgmlType(8, 32, 34),
    "q2_k": GgmlType(10, 256, 84, (80, 84)),
    "q3_k": GgmlType(11, 256, 110, (108, 110)),
    "q4_k": GgmlType(12, 256, 144, (0, 4)),
    "q5_k": GgmlType(13, 256, 176, (0, 4)),
    "q6_k": GgmlType(14, 256, 210, (208, 210)),
    "iq2_xs": GgmlType(17, 256, 74),
    "iq3_xxs": GgmlType(18, 256, 98),
    "iq4_nl": GgmlType(20, 32, 18),
    "iq3_s": GgmlType(21, 256, 110),
    "iq2_s": GgmlType(22, 256, 82),
    "iq4_xs": GgmlType(23, 256, 136),
    "bf16": GgmlType(30, 1, 2, (0, 0)),
}


def row_bytes(type_name: str, columns: int) -> int:
    """Bytes of one row of ``columns`` values; columns must be a multiple of the type's block."""
    kind = TYPES[type_name]
    if columns % kind.block:
        raise ValueError(f"a row of {columns} values is no multiple of {type_name}'s block of {kind.block}")
    return columns // kind.block * kind.bytes


def library_path(name: str) -> Path:
    """Path of a shared library of llama.cpp: ``LLAMA_CPP_LIB_PATH``, else the installed llama-cpp-python.

    Args:
        name: without prefix and suffix: ``ggml-base``, ``llama``, ``mtmd``.

    Raises:
        MissingDependency: it is not there.
    """
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    if given:
        folder = Path(given)
    else:
        found = find_spec("llama_cpp")
        if found is None or found.origin is None:
            raise MissingDependency("GGUF needs llama-cpp-python, which is not installed", INSTALL)
        folder = Path(found.origin).parent / "lib"
    suffixes = {"win32": (".dll",), "darwin": (".dylib", ".so")}.get(sys.platform, (".so",))
    for candidate in (f"{prefix}{name}{suffix}" for suffix in suffixes for prefix in ("lib", "")):
        if (folder / candidate).is_file():
            return folder / candidate
    cure = "point LLAMA_CPP_LIB_PATH at the folder that holds llama.cpp's libraries" if given else INSTALL
    raise MissingDependency(f"{folder} holds no library {name!r}", cure)


@cache
def _function(name: str) -> Any:
    path = library_path("ggml-base")
    try:
        return getattr(ctypes.CDLL(str(path)), name)
    except (OSError, AttributeError) as error:
        raise MissingDependency(f"{path} cannot be used ({error})", INSTALL) from error


@cache
def _kernel() -> Callable[..., int]:
    kernel = _function("ggml_quantize_chunk")
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    kernel.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    kernel.restype = ctypes.c_size_t
    function: Callable[..., int] = kernel
    return function


def prepare(type_name: str) -> None:
    """Load, or compile, what quantizing to a type takes."""
    k_quants.encoder(type_name, by_libggml)


def quantize(rows: F32, type_name: str, importance: F32 | None = None, out: U8 | None = None) -> U8:
    """Quantize a matrix row by row; any number of threads may do so at a time (ctypes releases the GIL).

    Args:
        rows: f32 [rows, columns], columns a multiple of the type's block.
        type_name: a key of ``TYPES``.
        importance: f32 [columns], mean x² of what the columns are multiplied with; some types ignore it.
        out: u8 [rows, row bytes], contiguous, to write to.

    Returns:
        u8 [rows, row bytes].

    Raises:
        MissingDependency: libggml is not there.
    """
    count, columns = rows.shape
    rows = np.ascontiguousarray(rows, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (columns,):
        raise ValueError(f"importance has the shape {weights.shape}, the rows have {columns} columns")
    result = np.empty((count, row_bytes(type_name, columns)), np.uint8) if out is None else out
    fast = k_quants.encoder(type_name, by_libggml)
    if fast is None or not fast(rows, weights, result):
        by_libggml(rows, type_name, weights, result)
    return result


def by_libggml(rows: F32, type_name: str, importance: F32 | None, out: U8 | None = None) -> U8:
    """As ``quantize``, always by libggml's own kernel; the arrays are contiguous."""
    count, columns = rows.shape
    result = np.empty((count, row_bytes(type_name, columns)), np.uint8) if out is None else out
    pointer = None if importance is None else importance.ctypes.data
    written = _kernel()(TYPES[type_name].id, rows.ctypes.data, result.ctypes.data, 0, count, columns, pointer)
    if written != result.nbytes:
        raise RuntimeError(f"libggml wrote {written} bytes of {type_name}, expected {result.nbytes}")
    return result


def dequantize(data: U8, type_name: str, columns: int) -> F32:
    """The values that bytes of a type stand for, by libggml: f32 [rows, columns].

    Args:
        data: u8 [rows, row bytes], contiguous.
    """
    if type_name == "bf16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if TYPES[type_name].block == 1:
        return data.view(np.float16 if type_name == "f16" else np.float32).astype(np.float32, copy=False)
    function = _function(f"dequantize_row_{type_name.replace('_k', '_K')}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    values = np.empty((len(data), columns), np.float32)
    function(data.ctypes.data, values.ctypes.data, values.size)
    return values


def overflows(data: U8, type_name: str) -> bool:
    """Whether a scale is infinite: llama.cpp does not load such a tensor.

    Args:
        data: u8 [rows, row bytes], contiguous.
    """
    kind = TYPES[type_name]
    scales = data.reshape(-1, kind.bytes)[:, slice(*kind.scales)]
    return not np.isfinite(np.ascontiguousarray(scales).view(np.float16)).all()
