"""Shards of samples spread over machines or processes with Dask; what a lost worker had is done again elsewhere.

Workers open the model and the samples' images under the same paths as here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from vlmexport.calibrate.collect import collect_shard
from vlmexport.calibrate.partial import Partial
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import Statistics
from vlmexport.errors import MissingDependency, UsageError, VlmExportError
from vlmexport.model import VLM, load
from vlmexport.source.checkpoint import Checkpoint, FoundAt
from vlmexport.source.locate import open_again
from vlmexport.threads import cores

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2  # shards a worker: the next is there when one is done, and few wait for their turn to be added
_CONNECT = "30s"
_one_at_a_time = threading.Lock()


def spread(work: Callable[[T, float], R], parts: Sequence[T], where: str, first: int = 0) -> Iterator[tuple[int, R]]:
    """Run ``work(part, share)`` for the parts from ``first`` on; yields (index, result) as they are done.

    Args:
        work: a function of a module, so that workers can import it; ``share`` of the available memory is its own.
        where: a scheduler's address, or ``local:N`` for N processes on this machine.

    Raises:
        MissingDependency: Dask is not installed.
        UsageError: no scheduler answers, or it has no workers, or a part was lost with several workers.
    """
    with _client(where) as client:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            raise UsageError(f"the Dask scheduler {where} has no workers", "start some, or pass --dask local:2")
        share = 0.5 / max(Counter(worker["host"] for worker in workers.values()).values())
        todo = iter(range(first, len(parts)))
        running: dict[str, int] = {}

        def start() -> list[Any]:
            index = next(todo, None)
            if index is None:
                return []
            future = client.submit(_guarded, work, parts[index], share, pure=False)
            running[future.key] = index
            return [future]

        completed = as_completed([future for _ in range(_AHEAD * len(workers)) for future in start()])
        for future in completed:
            try:
                result = future.result()
            except KilledWorker as error:
                raise UsageError(
                    f"several Dask workers died on one shard ({error})", "give the workers more memory"
                ) from error
            if isinstance(result, VlmExportError):
                raise result
            yield running.pop(future.key), result
            for following in start():
                completed.add(following)


def _guarded(work: Callable[[T, float], R], part: T, share: float) -> R | VlmExportError:
    """One shard at a time in a process, on all threads that the worker has. An error is an answer, not retried."""
    import torch
    from distributed import get_worker

    with _one_at_a_time:
        torch.set_num_threads(get_worker().state.nthreads)
        try:
            return work(part, share)
        except VlmExportError as error:
            return error


@contextmanager
def _client(where: str) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingDependency("--dask needs Dask", "pip install 'vlmexport[dask]'") from error
    if not where.startswith("local:"):
        try:
            client = Client(where, timeout=_CONNECT)
        except (OSError, ValueError) as error:
            raise UsageError(f"no Dask scheduler answers at {where} ({error})", "check the address") from error
        with client:
            yield client
        return
    count = where.removeprefix("local:")
    if not count.isdecimal() or int(count) < 1:
        raise UsageError(f"--dask {where} names no number of processes", "pass, for example, --dask local:2")
    threads = max(1, cores() // int(count))
    # Mapped weights count as a worker's memory, so a limit would end workers that are well.
    with (
        LocalCluster(
            n_workers=int(count), threads_per_worker=threads, memory_limit=None, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def calibrate(
    checkpoint: Checkpoint,
    components: tuple[str, ...],
    shards: list[list[Sample]],
    partial: Partial,
    where: str,
    advance: Callable[[], None],
) -> None:
    """Add the statistics of the shards that ``partial`` lacks."""
    parts = [(checkpoint.found_at, components, shard) for shard in shards]
    for index, found in spread(_statistics, parts, where, partial.done):
        partial.add(index, found)
        for _ in shards[index]:
            advance()


def _statistics(part: tuple[FoundAt, tuple[str, ...], list[Sample]], share: float) -> Statistics:
    found_at, components, shard = part
    checkpoint, vlm = _opened(found_at, components, share)
    return collect_shard(vlm, checkpoint.prompts, shard)


@lru_cache(maxsize=1)
def _opened(found_at: FoundAt, components: tuple[str, ...], share: float) -> tuple[Checkpoint, VLM]:
    """A worker keeps its model between shards."""
    checkpoint = open_again(found_at)
    return checkpoint, load(checkpoint, components=components, share=share)
