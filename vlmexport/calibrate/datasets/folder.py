"""A folder of images, each with its captions in a text file of its name, where there is one."""

from __future__ import annotations

from pathlib import Path

from vlmexport.calibrate.datasets.images import CAPTION_PROMPT, sample
from vlmexport.calibrate.samples import Sample

DESCRIBE = "Describe the image."
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def samples(folder: Path) -> list[Sample]:
    """One sample an image; folders inside are searched too."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    return [_sample(path, folder) for path in paths]


def _sample(path: Path, folder: Path) -> Sample:
    name, beside = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
    if not beside.is_file():
        return sample(name, 0, path, DESCRIBE, ())
    lines = beside.read_text(encoding="utf-8").splitlines()
    return sample(name, 0, path, CAPTION_PROMPT, [line.strip() for line in lines if line.strip()], "caption")
