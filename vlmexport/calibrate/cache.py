"""Statistics on disk: saved with a hash of checkpoint, set and settings, and reused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError

from vlmexport.calibrate.collect import collect
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import BINS, Statistics
from vlmexport.checkpoint import Checkpoint
from vlmexport.console import Console
from vlmexport.model import load

_VERSION = 1


def cache_folder() -> Path:
    """``VLMEXPORT_CACHE``, else ``vlmexport`` in the user's cache folder."""
    given = os.environ.get("VLMEXPORT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmexport"


def key(weights: dict[str, str], samples: list[Sample]) -> str:
    """Hash of everything that decides the statistics."""
    facts = {"version": _VERSION, "bins": BINS, "weights": weights, "samples": [[s.id, s.question] for s in samples]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def statistics(checkpoint: Checkpoint, weights: dict[str, str], samples: list[Sample], console: Console) -> Statistics:
    """The statistics of a checkpoint over samples, from the cache where it has them.

    Args:
        weights: file name → hash of the checkpoint's weights.
    """
    path = cache_folder() / f"statistics-{key(weights, samples)}.safetensors"
    if path.is_file():
        try:
            found = Statistics.load(path)
            console.note(f"calibration statistics reused: {path}")
            return found
        except (SafetensorError, OSError, KeyError, ValueError):
            console.note(f"calibration statistics in {path} are damaged; they are made anew")
    vlm = load(checkpoint)
    with console.progress("calibrating", len(samples)) as advance:
        found = collect(vlm, checkpoint.tokenizer, samples, advance)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    found.save(temporary)
    os.replace(temporary, path)
    return found
