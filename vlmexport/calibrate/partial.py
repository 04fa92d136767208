"""A calibration under way: shards are added in their order and saved, so that a run that was killed goes on there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from vlmexport.cache import keep
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.sensitivity import Sensitivity
from vlmexport.calibrate.statistics import Statistics


def save(statistics: Statistics | Sensitivity, path: Path) -> None:
    """Keep statistics in the cache, as far as it can be written."""

    def write(temporary: Path) -> None:
        try:
            statistics.save(temporary)
        except SafetensorError as error:  # how safetensors says that the disk is full, or the folder gone
            raise OSError(str(error)) from error

    keep(path, write)


class Partial:
    """The sum of the first shards, on disk after each of them.

    Args:
        path: of the file; what it holds of these shards is taken over.
    """

    def __init__(self, path: Path, shards: list[list[Sample]]) -> None:
        self.path = path
        self.total = Statistics()
        self.done = 0
        self._waiting: dict[int, Statistics] = {}
        try:
            found = Statistics.load(path) if path.is_file() else Statistics()
        except (SafetensorError, OSError, KeyError, ValueError):
            return  # damaged, or not for us: from the start
        ids: tuple[str, ...] = ()
        for number, shard in enumerate(shards, 1):
            ids += tuple(sample.id for sample in shard)
            if ids == found.samples:
                self.total, self.done = found, number

    def add(self, index: int, statistics: Statistics) -> None:
        """Add the statistics of a shard; one that is not next waits for those before it."""
        self._waiting[index] = statistics
        while self.done in self._waiting:
            self.total += self._waiting.pop(self.done)
            self.done += 1
            save(self.total, self.path)

    def remove(self) -> None:
        """The statistics are complete and lie elsewhere."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
