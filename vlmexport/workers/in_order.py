"""Work for every core, its results taken in order, in memory that does not grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

_AHEAD = 2
"""Results in flight to a thread: one being made, one waiting to be taken."""


class Buffers:
    """Memory for one piece of work at a time, kept for the next one: fresh pages cost more than most work on them."""

    def __init__(self) -> None:
        self._held: dict[str, U8] = {}

    def take(self, name: str, size: int) -> U8:
        """u8 [size], with whatever was in it."""
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, np.uint8)
        return held[:size]


def in_order(jobs: Iterable[Callable[[Buffers], U8]], threads: int) -> Generator[U8, None, None]:
    """Run jobs in threads; yield their results in order, each to be used before the next is asked for.

    Close the iterator (``contextlib.closing``) to stop early: jobs that have not begun are dropped, and it waits for
    those that have. An error of a job is raised where its result would have been.
    """
    free = deque(Buffers() for _ in range(threads * (1 + _AHEAD)))
    waiting: deque[tuple[Future[U8], Buffers]] = deque()
    pool = ThreadPoolExecutor(threads, "vlmexport")
    try:
        for job in jobs:
            if not free:
                future, buffers = waiting.popleft()
                yield future.result()
                free.append(buffers)
            waiting.append((pool.submit(job, free[0]), free.popleft()))
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
