"""Pictures made ready for a bundle's clients: cut and resized as its model has it, so that they resize no further."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import UsageError
from vlmexport.files import whole
from vlmexport.processing.image import PIXELS, Array, batched, cutting
from vlmexport.processing.image_processor import FILE, read_told
from vlmexport.processing.images import read_image
from vlmexport.processing.prompt import Grid


@dataclass(frozen=True)
class Prepared:
    """One picture.

    Attributes:
        source: the picture file.
        file: what was written for it.
        shape: of ``pixel_values``: views, channels, height, width; of arrays as they are in the file.
        tiles: rows and columns of the views that are tiles; 0 and 0 where none is.
        kept: whether the model sees the same of ``file`` as of ``source``: True of arrays.
    """

    source: Path
    file: Path
    shape: tuple[int, ...]
    tiles: Grid
    kept: bool

    def facts(self) -> dict[str, Any]:
        """In plain data; ``rows`` and ``cols`` as transformers' processors call them."""
        rows, cols = self.tiles
        return {
            "source": str(self.source), "file": str(self.file), "pixel_values": list(self.shape),
            "rows": rows, "cols": cols, "kept": self.kept,
        }  # fmt: skip


def prepare(
    bundle: Path, pictures: Sequence[Path], folder: Path, *, arrays: bool = False, force: bool = False
) -> Iterator[Prepared]:
    """Write a PNG of each picture that a client's own processing leaves as it is, or what the vision encoder is given.

    Args:
        folder: where they go, each under its picture's name.
        arrays: NumPy's ``.npz`` of the encoder's inputs by name, in place of a PNG.
        force: replace files of these names.

    Raises:
        UsageError: a picture cannot be read or cut, two have one name, a file is there already, or it is no bundle.
    """
    manifest = read_manifest(bundle)
    known = manifest.image_processor
    spec = read_told(bundle, known) if (bundle / FILE).is_file() else known
    targets = _targets(pictures, folder, ".npz" if arrays else ".png", force)
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in targets.items():
        yield _write(source, target, spec, arrays)


def _targets(pictures: Sequence[Path], folder: Path, suffix: str, force: bool) -> dict[Path, Path]:
    """Picture → the file that is written for it."""
    targets: dict[Path, Path] = {}
    for picture in pictures:
        target = folder / f"{picture.stem}{suffix}"
        if target in targets.values():
            raise UsageError(f"two pictures would become {target}", "prepare them into folders of their own")
        if target.exists() and not force:
            raise UsageError(f"{target} exists", "pass --force to replace it, or another --output")
        targets[picture] = target
    return targets


def _write(source: Path, target: Path, spec: ImageProcessorSpec, arrays: bool) -> Prepared:
    image, cut = read_image(source), cutting(spec)
    made, kept = cut.arrays(image, spec), True
    shape = made[PIXELS].shape
    with whole(target) as file:
        if arrays:
            given = batched(made, spec)
            shape = given[PIXELS].shape
            with file.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **given)
        else:
            ready = cut.prepared(image, spec)
            kept = _same(cut.arrays(ready, spec), made)
            plain = Image.fromarray(np.asarray(ready))  # without a colour profile, by which clients would change it
            plain.save(file, "PNG")
    return Prepared(source, target, shape, cut.tiles(image.size, spec), kept)


def _same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(one[name], array) for name, array in other.items())
