"""An evaluation spread over machines or processes: samples that share an image stay together, measures are added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmexport.calibrate import Sample
from vlmexport.calibrate.spread import spread
from vlmexport.errors import CheckpointError
from vlmexport.parity.compare.evaluate import Evaluation, run_samples
from vlmexport.parity.compare.measured import Measured
from vlmexport.source.checkpoint import Checkpoint, FoundAt
from vlmexport.source.locate import open_again

_Part = tuple[Path, FoundAt, list[Sample], int]

IMAGES = 16
"""Images a shard: enough to be worth opening both models for."""


def evaluate(
    bundle: Path,
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    where: str,
    advance: Callable[[], None],
    stock: int = 0,
) -> Evaluation:
    """``run_samples`` on Dask's workers, which find bundle and model under the same paths as here.

    Raises:
        CheckpointError: workers ran different runtimes, so that there is no one bundle to judge.
    """
    parts: list[_Part] = []
    for shard in _shards(samples):
        parts.append((bundle.resolve(), checkpoint.found_at, shard, min(stock, len(shard))))
        stock -= parts[-1][3]
    done: dict[int, Evaluation] = {}
    for index, part in spread(_evaluate, parts, where):
        done[index] = part
        for _ in parts[index][2]:
            advance()
    runs = [done[index] for index in sorted(done)]
    names = sorted({run.runtime for run in runs})
    if len(names) > 1:
        raise CheckpointError(f"workers ran different runtimes: {', '.join(names)}", "install one version on all")
    ids = [sample.id for sample in samples]
    measured = sum((run.measured for run in runs), Measured()).in_order(ids)
    as_is = [run.stock for run in runs if run.stock is not None]
    whole_stock = sum(as_is, Measured()).in_order(ids) if as_is else None
    notes = tuple(dict.fromkeys(note for run in runs for note in run.notes))
    kernels = max((run.kernels for run in runs if run.kernels), key=lambda one: one.layers or 0, default=None)
    others = [run.without for run in runs if run.without is not None]
    without = sum(others, Measured()).in_order(ids) if others else None
    return Evaluation(measured, runs[0].reference, names[0], notes, whole_stock, kernels=kernels, without=without)


def _shards(samples: Sequence[Sample]) -> list[list[Sample]]:
    """All samples of ``IMAGES`` images each."""
    images: dict[str, list[Sample]] = {}
    for sample in samples:
        images.setdefault(sample.image_id, []).append(sample)
    groups = list(images.values())
    return [
        [sample for group in groups[start : start + IMAGES] for sample in group]
        for start in range(0, len(groups), IMAGES)
    ]


def _evaluate(part: _Part, share: float) -> Evaluation:
    bundle, found_at, samples, stock = part
    return run_samples(bundle, open_again(found_at), samples, share=share, stock=stock)
