"""Samples that tell who loads them: for runs in several processes, some of which are killed."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vlmexport.calibrate import Sample


def load(seed: int, log: Path, pause: float) -> Image.Image:
    """A random picture; the process is noted in ``log``."""
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(pause)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 40, 3), dtype=np.uint8))


def samples(count: int, log: Path, pause: float = 0.0) -> list[Sample]:
    """Every second one knows its answer."""
    return [
        Sample(
            f"{i}",
            f"{i}",
            f"what is {i}?",
            partial(load, i, log, pause),
            answer="a chat" if i % 2 else None,
            drawn=f"noise {i}",
        )
        for i in range(count)
    ]


def loaded_by(log: Path) -> list[int]:
    """Process of every load so far."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []
