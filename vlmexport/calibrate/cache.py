"""Statistics on disk: saved with a hash of all that they depend on, and reused where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmexport.cache import cache_folder, is_held, used
from vlmexport.calibrate.code import code
from vlmexport.calibrate.collect import LARGE, LARGE_ANSWER, MAX_ANSWER, SHARD, collect_shard, shards
from vlmexport.calibrate.partial import Partial, save
from vlmexport.calibrate.samples import Sample, image_hashes
from vlmexport.calibrate.sensitivity import SENSITIVE, Sensitivity, measure
from vlmexport.calibrate.statistics import BINS, ROWS, Statistics
from vlmexport.console import Console
from vlmexport.model import load
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint

_VERSION = 8
_OF_NOTHING = ("name", "torch_dtype", "pad_token_id")
_OF_LANGUAGE = (
    "language", "prompt", "bos_token_id", "eos_token_id", "stop_token_ids", "chat_template", "max_images",
)  # fmt: skip


def key(
    checkpoint: Checkpoint,
    samples: list[Sample],
    components: tuple[str, ...] = COMPONENTS,
    measurement: str = "calibrate.collect",
) -> str:
    """Hash of everything that decides what is measured: weights, Spec and tokenizer of the components, samples with
    the bytes of their images, settings, and the code that counts."""
    images, decodes = image_hashes(samples), "language" in components
    facts = {
        "version": _VERSION, "bins": BINS, "rows": ROWS, "shard": SHARD, "answer": [MAX_ANSWER, LARGE, LARGE_ANSWER],
        "weights": checkpoint.fingerprints, "components": components, "spec": _spec(checkpoint, decodes),
        "tokenizer": checkpoint.tokenizer.fingerprint if decodes else None,
        "samples": [[*s.facts(), s.answer, *(images[one.image_id] for one in s.alone())] for s in samples],
        "code": code(checkpoint.spec, measurement, components),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _spec(checkpoint: Checkpoint, decodes: bool) -> dict[str, Any]:
    """What counts of the Spec: all but a few fields, so that one that comes later counts too."""
    left_out = _OF_NOTHING if decodes else _OF_NOTHING + _OF_LANGUAGE
    return {name: value for name, value in asdict(checkpoint.spec).items() if name not in left_out}


def statistics(
    checkpoint: Checkpoint,
    samples: list[Sample],
    console: Console,
    *,
    components: tuple[str, ...] = COMPONENTS,
    dask: str | None = None,
) -> Statistics:
    """The statistics of components of a checkpoint over samples, from the cache where it has them.

    A cached set of all components serves for some of them. A run that was interrupted is continued.

    Args:
        dask: a scheduler's address, or ``local:N``; in this process where it is None.
    """
    for cached in (COMPONENTS, components):
        found = _cached(_path(key(checkpoint, samples, cached)), console)
        if found is not None:
            return found.only(components)
    name = key(checkpoint, samples, components)
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
                partial.add(index, collect_shard(vlm, checkpoint.prompts, todo[index], advance))
    save(partial.total, _path(name))
    partial.remove()
    return partial.total


def sensitivity(checkpoint: Checkpoint, samples: list[Sample], console: Console) -> Sensitivity:
    """How much the answer feels each layer of the decoder, from the cache where it is there.

    Args:
        samples: those of the calibration set; the first ``SENSITIVE`` are run.
    """
    samples = samples[:SENSITIVE]
    name = key(checkpoint, samples, measurement="calibrate.sensitivity")
    path = cache_folder() / f"sensitivity-{name}.safetensors"
    if is_held(path):
        try:
            found = Sensitivity.load(path)
            used(path)
            console.note(f"sensitivities reused: {path}")
            return found
        except (SafetensorError, OSError, KeyError, ValueError):
            console.note(f"sensitivities in {path} are damaged; they are made anew")
    with console.progress("measuring sensitivity", 2 * len(samples)) as advance:
        found = measure(load(checkpoint), checkpoint.prompts, samples, advance)
    save(found, path)
    return found


def _path(name: str) -> Path:
    return cache_folder() / f"statistics-{name}.safetensors"


def _cached(path: Path, console: Console) -> Statistics | None:
    if not is_held(path):
        return None
    try:
        found = Statistics.load(path)
        used(path)
    except (SafetensorError, OSError, KeyError, ValueError):
        console.note(f"calibration statistics in {path} are damaged; they are made anew")
        return None
    console.note(f"calibration statistics reused: {path}")
    return found
