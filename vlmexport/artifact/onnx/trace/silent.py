"""What tracing says of itself, kept from users.

Filters of warnings and levels of loggers belong to the whole process, so whoever comes first sets them, and the last
one to leave takes them back: nothing changes while other threads run.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack
from threading import Lock

from onnx_ir.passes.common import initializer_deduplication


class Silent:
    """``with SILENT:`` around threads that trace changes nothing while they run; within each other, or side by side in
    threads, only the outermost counts."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stack = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._stack.enter_context(warnings.catch_warnings())
                # Several axes share a name here; they are meant to.
                warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                warnings.filterwarnings("ignore", category=FutureWarning)
                # It warns of every initializer that is an input and so not shared with an equal one; that is meant too.
                logger = logging.getLogger(initializer_deduplication.__name__)
                self._stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


SILENT = Silent()
