"""Statistics on disk: saved with a hash of checkpoint, set and settings, and reused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError

from vlmexport.cache import cache_folder
from vlmexport.calibrate.collect import LARGE, LARGE_ANSWER, MAX_ANSWER, SHARD, collect_shard, shards
from vlmexport.calibrate.partial import Partial, save
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.sensitivity import SENSITIVE, Sensitivity, measure
from vlmexport.calibrate.statistics import BINS, ROWS, Statistics
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.layout import COMPONENTS
from vlmexport.console import Console
from vlmexport.model import load

_VERSION = 6


def key(weights: dict[str, str], samples: list[Sample], components: tuple[str, ...] = COMPONENTS) -> str:
    """Hash of everything that decides the statistics."""
    facts = {
        "version": _VERSION, "bins": BINS, "rows": ROWS, "shard": SHARD, "answer": [MAX_ANSWER, LARGE, LARGE_ANSWER],
        "weights": weights, "components": components, "samples": [[s.id, s.question, s.answer] for s in samples],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def statistics(
    checkpoint: Checkpoint,
    weights: dict[str, str],
    samples: list[Sample],
    console: Console,
    *,
    components: tuple[str, ...] = COMPONENTS,
    dask: str | None = None,
) -> Statistics:
    """The statistics of components of a checkpoint over samples, from the cache where it has them.

    A cached set of all components serves for some of them. A run that was interrupted is continued.

    Args:
        weights: file name → hash of the checkpoint's weights.
        dask: a scheduler's address, or ``local:N``; in this process where it is None.
    """
    for cached in (COMPONENTS, components):
        found = _cached(_path(key(weights, samples, cached)), console)
        if found is not None:
            return found.only(components)
    name = key(weights, samples, components)
    todo = shards(samples)
    partial = Partial(_path(f"{name}.partial"), todo)
    if partial.done:
        console.note(f"calibration goes on after {len(partial.total.samples)} samples of an interrupted run")
    with console.progress("calibrating", len(samples), done=len(partial.total.samples)) as advance:
        if dask is not None:
            from vlmexport.calibrate.spread import calibrate

            calibrate(checkpoint, components, todo, partial, dask, advance)
        elif partial.done < len(todo):
            vlm = load(checkpoint, components=components)
            for index in range(partial.done, len(todo)):
                partial.add(index, collect_shard(vlm, checkpoint.tokenizer, todo[index], advance))
    save(partial.total, _path(name))
    partial.remove()
    return partial.total


def sensitivity(
    checkpoint: Checkpoint, weights: dict[str, str], samples: list[Sample], console: Console
) -> Sensitivity:
    """How much the answer feels each layer of the decoder, from the cache where it is there.

    Args:
        weights: file name → hash of the checkpoint's weights.
        samples: those of the calibration set; the first ``SENSITIVE`` are run.
    """
    samples = samples[:SENSITIVE]
    path = cache_folder() / f"sensitivity-{key(weights, samples)}.safetensors"
    if path.is_file():
        try:
            found = Sensitivity.load(path)
            console.note(f"sensitivities reused: {path}")
            return found
        except (SafetensorError, OSError, KeyError, ValueError):
            console.note(f"sensitivities in {path} are damaged; they are made anew")
    with console.progress("measuring sensitivity", 2 * len(samples)) as advance:
        found = measure(load(checkpoint), checkpoint.tokenizer, samples, advance)
    save(found, path)
    return found


def _path(name: str) -> Path:
    return cache_folder() / f"statistics-{name}.safetensors"


def _cached(path: Path, console: Console) -> Statistics | None:
    if not path.is_file():
        return None
    try:
        found = Statistics.load(path)
    except (SafetensorError, OSError, KeyError, ValueError):
        console.note(f"calibration statistics in {path} are damaged; they are made anew")
        return None
    console.note(f"calibration statistics reused: {path}")
    return found
