"""The header of an importance matrix in GGUF, counted before a library reads it.

``gguf`` takes some hundred bytes for each value of an array, and believes a count that the file does not hold.
"""

from __future__ import annotations

import struct
from pathlib import Path

_LARGEST = 16 << 20
_VALUES = 200_000
"""Of all arrays: an importance matrix has one, of the files that it was measured on."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9


def refuse_bomb(path: Path) -> None:
    """Walk over a header.

    Raises:
        ValueError: it ends before its counts do, or holds more than any importance matrix.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _Header(file.read(_LARGEST)).walk()


class _Header:
    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._values = data, 0, 0

    def walk(self) -> None:
        """All keys and all tensors' descriptions."""
        self._skip(4)
        version, tensors, keys = self._number(4), self._number(8), self._number(8)
        if version not in (2, 3):
            raise ValueError(f"it is GGUF of version {version}")
        for _ in range(keys):
            self._text()
            self._value(self._number(4))
        for _ in range(tensors):
            self._text()
            self._skip(8 * self._number(4) + 4 + 8)

    def _value(self, kind: int) -> None:
        if kind == _TEXT:
            self._text()
        elif kind == _ARRAY:
            kind, count = self._number(4), self._number(8)
            self._values += count
            if self._values > _VALUES:
                raise ValueError(f"its arrays hold more than {_VALUES:,} values")
            if kind == _TEXT:
                for _ in range(count):
                    self._text()
            else:
                self._skip(count * self._size(kind))
        else:
            self._skip(self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"it holds values of the type {kind}, which is unknown")
        return _SIZES[kind]

    def _text(self) -> None:
        self._skip(self._number(8))

    def _number(self, size: int) -> int:
        self._skip(size)
        found: int = struct.unpack_from("<I" if size == 4 else "<Q", self._data, self._at - size)[0]
        return found

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError(f"its header ends early, or is larger than {_LARGEST >> 20} MiB")
