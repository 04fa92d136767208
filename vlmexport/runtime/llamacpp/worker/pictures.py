"""How libmtmd cuts a picture into chunks: views of it, and where it writes marks around them, their tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import VlmExportError


@dataclass(frozen=True)
class Cut:
    """One picture's chunks.

    Attributes:
        views: pointers to those that are images: the tiles row by row, then the whole; or the only view.
        tiles: rows and columns of the tiles; 0 and 0 where there are none.
    """

    views: tuple[Any, ...]
    tiles: tuple[int, int]


def vocabulary(path: Path) -> Any:
    """A language model's file opened for its tokens alone: libmtmd writes marks between tiles with them.

    Raises:
        VlmExportError: llama.cpp cannot read it.
    """
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_default_params()
    params.vocab_only, params.n_gpu_layers = True, 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise VlmExportError(f"llama.cpp cannot read the tokenizer of {path}", "export the bundle again")
    return model


class Pictures:
    """Pictures of one libmtmd context."""

    def __init__(self, context: Any) -> None:
        from llama_cpp import mtmd_cpp

        self._mtmd: Any = mtmd_cpp
        self._context = context

    @contextmanager
    def cut(self, rgb: npt.NDArray[np.uint8]) -> Iterator[Cut]:
        """u8 [height, width, 3] → its chunks, freed afterwards.

        Raises:
            VlmExportError: libmtmd does not take it.
        """
        mtmd, rgb = self._mtmd, np.ascontiguousarray(rgb)
        data = rgb.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(rgb.shape[1], rgb.shape[0], data)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            part = ctypes.pointer(mtmd.mtmd_input_part(None, bitmap))
            if mtmd.mtmd_tokenize_from_parts(self._context, chunks, ctypes.pointer(part), 1, False):
                size = f"{rgb.shape[1]}x{rgb.shape[0]}"
                raise VlmExportError(f"libmtmd refuses a picture of {size}", "try one of another shape")
            yield self._cut([mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))])
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)

    def blank(self, side: int) -> Any:
        """A view of a black strip, to be kept: whoever encodes it writes other pixels over its own."""
        with self.cut(np.zeros((1, side, 3), np.uint8)) as found:
            return self._mtmd.mtmd_input_chunk_copy(found.views[0])

    def _cut(self, chunks: list[Any]) -> Cut:
        """Every tile has a text before it, which begins with a line break where a row does that is not the first; where
        tiles have none, they are told as one row, for libmtmd does not say how they lie."""
        first: list[int] = []
        views = []
        for before, chunk in zip([None, *chunks], chunks, strict=False):
            if self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                views.append(chunk)
                first += self._ids(before)[:1] if before is not None else []
        tiles = len(views) - 1
        if len(first) < len(views):
            return Cut(tuple(views), (min(tiles, 1), tiles))
        if not tiles:
            return Cut(tuple(views), (0, 0))
        rows = 1 + sum(token != first[0] for token in first[1:tiles])
        return Cut(tuple(views), (rows, tiles // rows))

    def _ids(self, chunk: Any) -> list[int]:
        count = ctypes.c_size_t()
        ids = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return [int(ids[i]) for i in range(count.value)]
