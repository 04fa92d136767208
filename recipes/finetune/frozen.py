"""Features of a tower that does not learn: computed when a picture is first needed, and kept where there is room."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from lessons import Lesson
from PIL import Image

from vlmexport.model import VLM
from vlmexport.source.checkpoint import Checkpoint


class Features:
    """Callable with pictures: f32 [pictures, patches, vision width].

    Args:
        compute: RGB image → [1, patches, vision width].
        folder: where they are kept as float16, a file a picture; nowhere where it is None.
    """

    def __init__(self, compute: Callable[[Image.Image], torch.Tensor], folder: Path | None) -> None:
        self._compute, self._folder = compute, folder

    def __call__(self, some: Sequence[Lesson]) -> torch.Tensor:
        return torch.cat([self._of(lesson) for lesson in some])

    def _of(self, lesson: Lesson) -> torch.Tensor:
        path = self._folder and self._folder / f"{hashlib.sha256(lesson.content().encode()).hexdigest()[:24]}.npy"
        if path is None or not path.exists():
            with torch.inference_mode():
                # Rounded either way, so that a run does not depend on whether they are kept.
                values = self._compute(lesson.load()).half().numpy()
            if path is None:
                return torch.from_numpy(values).float()
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}")
            with partial.open("wb") as file:
                np.save(file, values)
            partial.replace(path)
        return torch.from_numpy(np.load(path)).float()


def of_tower(vlm: VLM, checkpoint: Checkpoint, folder: Path | None, data: str) -> Features:
    """Those of the float model's tower."""
    return Features(lambda image: vlm.features(vlm.pixels(image)), folder and folder / key(_hash(checkpoint), data))


def key(tower: bytes, data: str) -> str:
    """The name of a folder: another tower or another data set has another."""
    kind = data.partition(":")[0]
    return blake3(tower + (kind if kind == "scenes" else str(Path(data).resolve())).encode()).hexdigest()[:16]


def _hash(checkpoint: Checkpoint) -> bytes:
    digest = blake3(repr(checkpoint.spec.vision).encode())
    for name, tensor in sorted(checkpoint.tensors["vision"].items()):
        digest.update(name.encode())
        digest.update(tensor.read_into(np.empty(tensor.nbytes, np.uint8)).data)
    return digest.digest()
