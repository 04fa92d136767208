"""Measures between arrays of a reference and of a runtime: cosine of each row, NMSE = Σ(a-b)² / Σa²,
SQNR = -10·log10 NMSE, the largest difference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
KEPT = 2**19
"""Rows of a stage that a percentile is taken from: those of 500 images at least."""


class ShapeDiffersError(ValueError):
    """Two arrays that should be compared have different shapes."""


def cosine(reference: F32, other: F32) -> F64:
    """Cosine of each row: [..., rows, width] → f64 [rows of all]. Two zero rows are equal (1), one is not (0)."""
    a = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    b = other.reshape(-1, other.shape[-1]).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(1) & ~b.any(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(norms > 0, (a * b).sum(1) / np.where(norms > 0, norms, 1), 0.0)
    return np.where(both_zero, 1.0, value)


def comparable(reference: F32, other: F32) -> tuple[F32, bool]:
    """``other`` with zeros where it is not finite, and whether it was finite everywhere.

    Raises:
        ShapeDiffersError: their shapes differ.
    """
    if reference.shape != other.shape:
        raise ShapeDiffersError(f"shape {list(other.shape)}, the reference has {list(reference.shape)}")
    finite = np.isfinite(other)
    return (other, True) if finite.all() else (np.where(finite, other, np.float32(0)), False)


@dataclass
class Thinned:
    """Values whose mean, minimum and percentiles are asked for, in memory that does not grow with them: all are kept up
    to ``KEPT``, then every second one, every fourth …"""

    kept: F64 = field(default_factory=lambda: np.zeros(0))
    every: int = 1
    count: int = 0
    total: float = 0.0
    low: float = np.inf

    def add(self, values: F64) -> None:
        """f64 [values]."""
        self.kept = np.concatenate([self.kept, values[-self.count % self.every :: self.every]])
        self.count += len(values)
        self.total += float(values.sum())
        self.low = min(self.low, float(values.min(initial=np.inf)))
        self._thin(self.every)

    def _thin(self, every: int) -> None:
        while self.every < every or len(self.kept) > KEPT:
            self.kept, self.every = self.kept[::2].copy(), 2 * self.every

    def __add__(self, other: Thinned) -> Thinned:
        parts = [Thinned(part.kept, part.every) for part in (self, other)]
        for part in parts:
            part._thin(max(self.every, other.every))
        both = Thinned(
            np.concatenate([part.kept for part in parts]), max(part.every for part in parts), self.count + other.count,
            self.total + other.total, min(self.low, other.low),
        )  # fmt: skip
        both._thin(both.every)
        return both

    @property
    def mean(self) -> float:
        """Of all."""
        return float(self.kept.mean()) if self.every == 1 else self.total / self.count


@dataclass
class ArrayMeasure:
    """Adds up the difference of arrays over samples. ``last`` are the cosines of the rows of the array added last."""

    cosines: Thinned = field(default_factory=Thinned)
    error: float = 0.0
    power: float = 0.0
    max_abs: float = 0.0
    finite: bool = True
    last: F64 = field(default_factory=lambda: np.zeros(0))

    def add(self, reference: F32, other: F32) -> None:
        """Compare two arrays of one shape.

        Raises:
            ShapeDiffersError: their shapes differ.
        """
        other, finite = comparable(reference, other)
        self.finite &= finite
        difference = other.astype(np.float64) - reference
        self.last = cosine(reference, other)
        self.cosines.add(self.last)
        self.error += float(np.square(difference).sum())
        self.power += float(np.square(reference.astype(np.float64)).sum())
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))

    def __add__(self, other: ArrayMeasure) -> ArrayMeasure:
        return ArrayMeasure(
            self.cosines + other.cosines,
            self.error + other.error,
            self.power + other.power,
            max(self.max_abs, other.max_abs),
            self.finite and other.finite,
        )

    def metrics(self) -> dict[str, float]:
        """cosine (mean), cosine_p1, cosine_min, nmse, sqnr_db (200 where equal), max_abs, finite (1 or 0)."""
        nmse = self.error / self.power if self.power else float(self.error > 0)
        return {
            "cosine": self.cosines.mean,
            "cosine_p1": float(np.percentile(self.cosines.kept, 1)),
            "cosine_min": self.cosines.low,
            "nmse": nmse,
            "sqnr_db": float(-10 * np.log10(max(nmse, 1e-20))),
            "max_abs": self.max_abs,
            "finite": float(self.finite),
        }


@dataclass
class EqualMeasure:
    """Counts values that are the same to the bit, and keeps the largest difference."""

    equal: int = 0
    values: int = 0
    max_abs: float | None = None

    def add(self, reference: F32, other: F32) -> None:
        """Compare two arrays of one shape; values that are not finite differ.

        Raises:
            ShapeDiffersError: their shapes differ.
        """
        finite, _ = comparable(reference, other)
        self.equal += int((reference == other).sum())
        self.values += reference.size
        self.max_abs = max(self.max_abs or 0.0, float(np.abs(reference - finite).max(initial=0.0)))

    def count(self, equal: bool) -> None:
        """Something that is equal or not, and has no size."""
        self.equal += equal
        self.values += 1

    def metrics(self) -> dict[str, float]:
        """equal (share), and max_abs where there were arrays; nothing of nothing."""
        found = {"equal": self.equal / self.values} if self.values else {}
        return found if self.max_abs is None else found | {"max_abs": self.max_abs}
