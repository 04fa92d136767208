"""Measures between logits of a reference and of a runtime: how far the probabilities are apart (KL divergence as
llama-perplexity counts it: terms with log p > -16), and how often both choose the same token."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vlmexport.measures.arrays import F32, F64, comparable
from vlmexport.measures.intervals import share

MIN_LOG_PROBABILITY = -16.0
_AT_ONCE = 2**20
"""Logits that are compared together, in float64: an answer of 64 tokens has 17 million in a vocabulary of 262,144."""


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
