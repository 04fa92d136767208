"""Order, bounded memory and a prompt end of work in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from vlmexport.workers.in_order import U8, Buffers, in_order


def job(number: int, seconds: float = 0.0) -> Callable[[Buffers], U8]:
    def work(buffers: Buffers) -> U8:
        time.sleep(seconds)
        result = buffers.take("result", 4)
        result[:] = number
        return result

    return work


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads: int) -> None:
    jobs = [job(i, 0.002 * (i % 3)) for i in range(40)]
    assert [int(result[0]) for result in in_order(jobs, threads)] == list(range(40))


def test_few_are_in_flight() -> None:
    taken, asked = 0, 0

    def jobs() -> object:
        nonlocal asked
        for number in range(50):
            asked += 1
            assert asked - taken <= 3 * 2 + 1
            yield job(number)

    for _ in in_order(jobs(), 2):  # type: ignore[arg-type]
        taken += 1
    assert taken == 50


def test_an_error_ends_the_work() -> None:
    begun = []

    def bad(_: Buffers) -> U8:
        raise ValueError("block 3")

    def counted(buffers: Buffers) -> U8:
        begun.append(1)
        return job(0)(buffers)

    with pytest.raises(ValueError, match="block 3"), closing(in_order([counted] * 3 + [bad] + [counted] * 90, 2)) as it:
        list(it)
    assert len(begun) < 12
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vlmexport")]


def test_buffers_are_kept() -> None:
    buffers = Buffers()
    first = buffers.take("a", 100)
    assert np.shares_memory(first, buffers.take("a", 50))
    assert buffers.take("a", 200).size == 200
    assert not np.shares_memory(buffers.take("a", 8), buffers.take("b", 8))
