"""Measures between a reference and what a runtime gave. Definitions: cosine per token; NMSE = Σ(a-b)² / Σa²;
SQNR = -10·log10 NMSE; KL divergence as llama-perplexity counts it (terms with log p > -16)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vlmexport.measures.intervals import share_interval

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
MIN_LOG_PROBABILITY = -16.0
KEPT = 2**19
"""Rows of a stage that a percentile is taken from: those of 500 images at least."""

_AT_ONCE = 2**20
"""Logits that are compared together, in float64: an answer of 64 tokens has 17 million in a vocabulary of 262,144."""


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


def log_softmax(logits: F32) -> F64:
    """Row by row, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    normalised: F64 = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return normalised


def kl_divergence(reference: F32, other: F32) -> F64:
    """KL(reference ‖ other) of each row of logits: [rows, vocabulary] → f64 [rows], in nats."""
    p, q = log_softmax(reference), log_softmax(other)
    terms = np.where(p > MIN_LOG_PROBABILITY, np.exp(p) * (p - q), 0.0)
    return np.maximum(np.asarray(terms.sum(-1), np.float64), 0.0)  # rounding makes equal rows -1e-16


def share(name: str, successes: float, count: int) -> dict[str, float]:
    """A share of ``count``, and its 95 % interval: name, name_low, name_high."""
    low, high = share_interval(successes, count)
    return {name: successes / count, f"{name}_low": low, f"{name}_high": high}


def agreement(lost: float, decisions: int) -> dict[str, float]:
    """What is left of ``decisions`` where those that differ are weighed by ``preference``, ``lost`` in all; with its
    95 % interval: no value between 0 and 1 varies more than a share of the same mean."""
    return share("agreement", decisions - lost, decisions)


def preference(logits: F32, own: npt.NDArray[np.intp], other: npt.NDArray[np.intp]) -> F64:
    """How much more often a model takes its own token than another, had it to choose between the two by their
    probabilities: (p - q) / (p + q), 0 at a tie, 0.22 where the logits are 0.45 apart, 0.99 at 5.

    Args:
        logits: [rows, vocabulary].
        own: the model's own token in each row.
        other: the token that it is compared with.
    """
    rows = np.arange(len(logits))
    apart = logits[rows, own].astype(np.float64) - logits[rows, other]
    return np.maximum(np.tanh(apart / 2), 0.0)


@dataclass
class LogitsMeasure:
    """Adds up the difference of logits at the positions that decoding uses: the last of the prompt and those of the
    answer. Logits before them decide nothing, and nobody computes them."""

    kld: list[F64] = field(default_factory=list)
    lost: list[F64] = field(default_factory=list)
    """Of each position: how much the reference preferred its best token to the other's best."""
    same_top: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    delta_p: list[F64] = field(default_factory=list)
    max_abs: float = 0.0
    finite: bool = True
    error: float = 0.0
    power: float = 0.0

    def add(self, reference: F32, other: F32, answer: list[int]) -> F64:
        """Compare logits [1, tokens of the answer, vocabulary], from which the answer is taken.

        Returns:
            f64 [tokens], KL divergences.

        Raises:
            ShapeDiffersError: their shapes differ.
        """
        other, finite = comparable(reference, other)
        self.finite &= finite
        known, step = len(self.kld), max(_AT_ONCE // reference.shape[-1], 1)
        for start in range(0, len(answer), step):
            rows = slice(start, start + step)
            self._add(reference[0, rows], other[0, rows], answer[rows])
        return np.concatenate(self.kld[known:])

    def _add(self, a: F32, b: F32, answer: list[int]) -> None:
        """Rows [tokens, vocabulary], few enough to be widened to float64 several times."""
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max()))
        self.error += float(np.square(b.astype(np.float64) - a).sum())
        self.power += float(np.square(a.astype(np.float64)).sum())
        self.kld.append(kl_divergence(a, b))
        own, best = a.argmax(-1), b.argmax(-1)
        self.same_top.append(own == best)
        self.lost.append(preference(a, own, best))
        rows = np.arange(len(answer))
        p, q = np.exp(log_softmax(a)[rows, answer]), np.exp(log_softmax(b)[rows, answer])
        self.delta_p.append(q - p)

    def __add__(self, other: LogitsMeasure) -> LogitsMeasure:
        return LogitsMeasure(
            self.kld + other.kld,
            self.lost + other.lost,
            self.same_top + other.same_top,
            self.delta_p + other.delta_p,
            max(self.max_abs, other.max_abs),
            self.finite and other.finite,
            self.error + other.error,
            self.power + other.power,
        )

    def metrics(self) -> dict[str, float]:
        """kld (mean) with its standard error, percentiles and largest, agreement and top1 with their intervals, delta_p
        (mean), nmse, max_abs, finite."""
        kld, delta = np.concatenate(self.kld), np.concatenate(self.delta_p)
        lost, same = np.concatenate(self.lost), np.concatenate(self.same_top)
        return (
            agreement(float(lost.sum()), len(lost))
            | share("top1", int(same.sum()), len(same))
            | {
                "kld": float(kld.mean()),
                "kld_se": float(kld.std(ddof=1) / np.sqrt(len(kld))) if len(kld) > 1 else 0.0,
                "kld_median": float(np.median(kld)),
                "kld_p99": float(np.percentile(kld, 99)),
                "kld_max": float(kld.max()),
                "delta_p": float(delta.mean()),
                "nmse": self.error / self.power if self.power else float(self.error > 0),
                "max_abs": self.max_abs,
                "finite": float(self.finite),
            }
        )
