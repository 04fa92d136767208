"""Samples: an image and a question. The calibration set, and its held-out part for the verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One image with one question; ``answer`` is the expected text where it is known."""

    id: str
    question: str
    load: Callable[[], Image.Image] = field(repr=False)
    answer: str | None = None
    kind: str | None = None

    def image(self) -> Image.Image:
        """The RGB image."""
        return self.load()


def calibration_samples(limit: int | None = None) -> list[Sample]:
    """The calibration set that ships with the package."""
    raise RuntimeError("not laid yet")


def heldout_samples(limit: int | None = None) -> list[Sample]:
    """The held-out part."""
    raise RuntimeError("not laid yet")
