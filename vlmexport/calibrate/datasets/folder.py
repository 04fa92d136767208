"""A folder of images, each with its captions in a text file of its name, where there is one."""

from __future__ import annotations

from pathlib import Path

from vlmexport.calibrate.datasets.images import CAPTION_PROMPT, sample
from vlmexport.calibrate.samples import Sample
from vlmexport.errors import UsageError

DESCRIBE = "Describe the image."
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def samples(folder: Path) -> list[Sample]:
    """One sample an image; folders inside are searched too.

    Raises:
        UsageError: captions are no UTF-8.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    return [_sample(path, folder) for path in paths]


def _sample(path: Path, folder: Path) -> Sample:
    name, beside = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
    if not beside.is_file():
        return sample(name, 0, path, DESCRIBE, ())
    try:
        lines = beside.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{beside} is no UTF-8", "save it as UTF-8") from error
    return sample(name, 0, path, CAPTION_PROMPT, [line.strip() for line in lines if line.strip()], "caption")
