"""llama.cpp's own quantizer, and its own reader of GGUF, as peers to compare with."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.quantize.ggml import TYPES, library_path

F32 = npt.NDArray[np.float32]


@cache
def _silent() -> Any:
    """A log that nobody reads; llama.cpp keeps its address, so it must stay."""
    from llama_cpp import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def llama_quantize(
    source: Path,
    target: Path,
    file_type: int,
    means: Mapping[str, F32] | None = None,
    tensor_types: Sequence[str] = (),
) -> bool:
    """Quantize a GGUF file; whether llama.cpp did so.

    Args:
        means: GGUF name → f32 [columns] mean x²; None for no importance matrix.
        tensor_types: ``REGEX=TYPE`` each, as ``llama-quantize --tensor-type``.
    """
    from llama_cpp import llama_cpp

    llama_cpp.llama_log_set(_silent(), None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = 2, file_type
    data = (llama_cpp.llama_model_imatrix_data * (len(means or {}) + 1))()
    for entry, (name, mean) in zip(data, (means or {}).items(), strict=False):
        entry.name, entry.size = name.encode(), mean.size
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if means is not None:
        params.imatrix = data
    overrides = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
    for override, text in zip(overrides, tensor_types, strict=False):
        pattern, _, kind = text.rpartition("=")
        override.pattern, override.type = pattern.encode(), TYPES[kind].id
    params.tt_overrides = overrides
    return bool(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0)


def _library() -> Any:
    library = ctypes.CDLL(str(library_path("ggml-base")))
    pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", pointer, (text, _Params)),
        ("gguf_find_key", integer, (pointer, text)),
        ("gguf_get_kv_type", ctypes.c_int, (pointer, integer)),
        ("gguf_get_arr_type", ctypes.c_int, (pointer, integer)),
        ("gguf_get_arr_n", ctypes.c_size_t, (pointer, integer)),
        ("gguf_get_arr_str", text, (pointer, integer, ctypes.c_size_t)),
        ("gguf_get_val_u32", ctypes.c_uint32, (pointer, integer)),
        ("gguf_get_n_tensors", integer, (pointer,)),
        ("gguf_get_tensor_name", text, (pointer, integer)),
        ("gguf_get_tensor_type", ctypes.c_int, (pointer, integer)),
        ("ggml_get_tensor", pointer, (pointer, text)),
        ("ggml_nelements", integer, (pointer,)),
        ("ggml_get_data_f32", pointer, (pointer,)),
        ("gguf_free", None, (pointer,)),
        ("ggml_free", None, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p)))


def read_imatrix(path: Path) -> tuple[list[str], int, int, dict[str, F32]]:
    """An importance matrix through libggml, by the steps of llama.cpp's ``common_imatrix_load`` and of
    ``llama-quantize``: datasets, chunk count, chunk size, and name → f32 [columns] mean x²."""
    library, tensors = _library(), ctypes.c_void_p()
    file = library.gguf_init_from_file(str(path).encode(), _Params(False, ctypes.pointer(tensors)))
    assert file
    string, u32, array = 8, 4, 9
    datasets, count, size = (
        library.gguf_find_key(file, f"imatrix.{key}".encode()) for key in ("datasets", "chunk_count", "chunk_size")
    )
    assert library.gguf_get_kv_type(file, datasets) == array
    assert library.gguf_get_arr_type(file, datasets) == string
    assert library.gguf_get_kv_type(file, count) == library.gguf_get_kv_type(file, size) == u32
    sets = [library.gguf_get_arr_str(file, datasets, i) for i in range(library.gguf_get_arr_n(file, datasets))]
    names = [library.gguf_get_tensor_name(file, i) for i in range(library.gguf_get_n_tensors(file))]
    values = {}
    for i, name in enumerate(names):
        assert library.gguf_get_tensor_type(file, i) == 0
        tensor = library.ggml_get_tensor(tensors, name)
        data = ctypes.cast(library.ggml_get_data_f32(tensor), ctypes.POINTER(ctypes.c_float))
        values[name.decode()] = np.ctypeslib.as_array(data, (library.ggml_nelements(tensor),)).copy()
    facts = library.gguf_get_val_u32(file, count), library.gguf_get_val_u32(file, size)
    library.gguf_free(file)
    library.ggml_free(tensors)
    found = {}
    for name, sums in values.items():
        if name.endswith(".in_sum2"):
            counts = values[name.replace(".in_sum2", ".counts")]
            assert counts.size == 1
            found[name.removesuffix(".in_sum2")] = sums / np.float32(round(float(counts[0])))
    assert len(found) * 2 == len(values)
    return [text.decode() for text in sets], *facts, found
