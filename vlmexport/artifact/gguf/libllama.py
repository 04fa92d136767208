"""llama.cpp's own tokenizer, called through llama-cpp-python: for the proof at export, and in the runtime."""

from __future__ import annotations

import ctypes
from typing import Any

from vlmexport.errors import VlmExportError


def encode(library: Any, vocabulary: Any, text: str, bos: bool = False, special: bool = False) -> list[int]:
    """Token ids of a text.

    Args:
        library: ``llama_cpp.llama_cpp``.
        vocabulary: its ``llama_vocab`` of a model.
        bos: what the file puts before a text is put there.
        special: special tokens inside it are tokens and not plain text.

    Raises:
        VlmExportError: it cannot be tokenized.
    """
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 2))()
    count = library.llama_tokenize(vocabulary, data, len(data), ids, len(ids), bos, special)
    if count < 0:
        raise VlmExportError("llama.cpp cannot tokenize this text", "ask a shorter question")
    return list(ids[:count])
