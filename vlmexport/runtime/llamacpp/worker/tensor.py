"""Read and write the tensors of a running ggml graph through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import Unsupported
from vlmexport.quantize.ggml import library_path


class _Tensor(ctypes.Structure):
    """``struct ggml_tensor`` up to its name. Source: ggml.h at 0c1e57098."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def _library() -> Any:
    library = ctypes.CDLL(str(library_path("ggml-base")))
    transfer = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    for name in ("ggml_backend_tensor_get", "ggml_backend_tensor_set"):
        getattr(library, name).argtypes = transfer
        getattr(library, name).restype = None
    library.ggml_get_name.argtypes, library.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_void_p
    library.ggml_op_name.argtypes, library.ggml_op_name.restype = [ctypes.c_int], ctypes.c_char_p
    library.ggml_nbytes.argtypes, library.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    return library


class Node:
    """A tensor of a graph that is being computed."""

    _ggml: Any = None

    def __init__(self, address: int) -> None:
        if Node._ggml is None:
            Node._ggml = _library()
        self._address = address
        self._tensor = _Tensor.from_address(address)

    def check_layout(self) -> None:
        """Compare our idea of ``ggml_tensor`` with the library's.

        Raises:
            Unsupported: a llama.cpp whose tensors are laid out otherwise.
        """
        if self._ggml.ggml_get_name(self._address) != self._address + _Tensor.name.offset:
            raise Unsupported(
                "this llama.cpp lays its tensors out otherwise than the one vlmexport knows",
                "install the pinned version: pip install 'vlmexport[gguf]'",
            )

    @property
    def name(self) -> str:
        """Its name, weights as in the file."""
        name: bytes = self._tensor.name
        return name.decode(errors="replace")

    @property
    def op(self) -> str:
        """The operator that computes it, e.g. ``GET_ROWS``; ``NONE`` for inputs and weights."""
        name: bytes = self._ggml.ggml_op_name(self._tensor.op)
        return name.decode()

    @property
    def shape(self) -> tuple[int, ...]:
        """Four sizes, as NumPy has them: the fastest last."""
        return tuple(int(size) for size in reversed(self._tensor.ne))

    @property
    def inputs(self) -> list[Node]:
        """The tensors it is computed from."""
        return [Node(ctypes.addressof(source.contents)) for source in self._tensor.src if source]

    def read(self, dtype: type[np.float32] | type[np.int32]) -> npt.NDArray[Any]:
        """Its values, in ``shape``."""
        values = np.empty(self.shape, dtype)
        self._fits(values)
        self._ggml.ggml_backend_tensor_get(self._address, values.ctypes.data, 0, values.nbytes)
        return values

    def write(self, values: npt.NDArray[Any]) -> None:
        """Overwrite its values, all of them."""
        values = np.ascontiguousarray(values)
        self._fits(values)
        self._ggml.ggml_backend_tensor_set(self._address, values.ctypes.data, 0, values.nbytes)

    def _fits(self, values: npt.NDArray[Any]) -> None:
        size = self._ggml.ggml_nbytes(self._address)
        if size != values.nbytes:
            raise Unsupported(f"{self.name} has {size} bytes, {values.nbytes} were given", "use this bundle's sizes")
