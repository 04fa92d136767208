"""Messages between a runtime and the process that works for it: a length, a JSON header, then arrays as raw bytes."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import VlmExportError

Array = npt.NDArray[Any]
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Message:
    """A request (``body["op"]``) or a reply (``body["error"]`` where it failed)."""

    body: dict[str, Any]
    arrays: list[Array] = field(default_factory=list)


def send(stream: IO[bytes], message: Message) -> None:
    """Write a message.

    Raises:
        OSError: the other side is gone.
    """
    arrays = [np.ascontiguousarray(array) for array in message.arrays]
    shapes = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    header = json.dumps({"body": message.body, "arrays": shapes}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in arrays:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> Message:
    """Read a message; blocks until it is there.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    header = json.loads(_exactly(stream, length))
    arrays = []
    for entry in header["arrays"]:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(_exactly(stream, count * dtype.itemsize), dtype).reshape(shape))
    return Message(header["body"], arrays)


def serve(answer: Callable[[Message], Message]) -> None:
    """Answer requests on stdin until it ends; replies go to stdout, and what others print there to stderr."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = answer(request)
        except VlmExportError as error:
            reply = Message({"error": error.what, "cure": error.cure, "kind": type(error).__name__})
        send(replies, reply)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = stream.read(size)
        if not part:
            raise EOFError("the stream ended within a message")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
