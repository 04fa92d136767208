"""The samples of a verdict: none of them was used for calibration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.calibrate import Sample, heldout_samples
from vlmexport.calibrate.datasets import read
from vlmexport.calibrate.samples import file_hash
from vlmexport.errors import NotEnoughData

MIN_SAMPLES = 20


@dataclass(frozen=True)
class Chosen:
    """Samples, where they are from, and what must be said about them."""

    samples: list[Sample]
    data: str
    notes: tuple[str, ...]


def choose(manifest: Manifest, samples: list[Sample] | int, data: Path | None = None) -> Chosen:
    """The samples that a bundle is judged on.

    Args:
        samples: they themselves, or how many: of the shipped ones, all questions of an image before the next, because
            images take the longest; or, at most, of ``data``.

    Raises:
        UsageError: the data cannot be read.
        NotEnoughData: fewer than 20 are left.
    """
    if isinstance(samples, list):
        name, offered, limit = "given samples", samples, len(samples)
    elif data is None:
        name, offered, limit = "held-out scenes", heldout_samples(samples, by_image=True), samples
    else:
        name, offered, limit = data.name, read(data), samples
    kept: list[Sample] = []
    seen = 0
    for sample in offered:
        if len(kept) == limit:
            break
        if _was_used(sample, manifest):
            seen += 1
        else:
            kept.append(sample)
    left_out = f"{seen} samples left out: calibration has seen their images" if seen else ""
    if len(kept) < MIN_SAMPLES:
        why = f" ({left_out})" if left_out else ""
        raise NotEnoughData(f"{len(kept)} samples are too few for a verdict{why}", f"pass at least {MIN_SAMPLES}")
    return Chosen(kept, name, (left_out,) if left_out else ())


def _was_used(sample: Sample, manifest: Manifest) -> bool:
    """By its id, or by the content of its image: a copy under another name is no new image."""
    calibration = manifest.calibration
    if calibration is None:
        return False
    if sample.id in calibration.samples:
        return True
    files = [one.file for one in sample.alone() if one.file is not None]
    return bool(calibration.images) and any(file_hash(file) in calibration.images for file in files)
