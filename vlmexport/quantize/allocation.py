"""Which type each tensor gets under a budget of bytes: bits where they matter. Pure functions.

The divergence of the answers that a quantized weight causes is predicted from two moments: what goes into each column
(Σx², the importance matrix) and how much the answer feels each output (Σg², ``calibrate.sensitivity``):

    KL ≈ ½ Σ_rows Σ_columns  E[g_row²] · (w − w')² · E[x_column²]

This is the Fisher information of the weights with its block for a layer split into an output and an input part, and
only the diagonals kept (Martens and Grosse 2015, arXiv:1503.05671). Predictions of different tensors add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

WIDE = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0", "f16")
NARROW = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16")
"""Candidates for rows that are a multiple of 256, and for others."""


@dataclass(frozen=True)
class Choice:
    """A type that a tensor may get: bytes in the file and predicted KL divergence, in nats a position."""

    type: str
    bytes: int
    loss: float


def candidates(columns: int) -> tuple[str, ...]:
    """Types that rows of so many values may get."""
    if columns % 256 == 0:
        return WIDE
    return NARROW if columns % 32 == 0 else ("f16",)


def loss(difference: F32, rows: F64, columns: F64) -> float:
    """Predicted divergence: half the squared error of f32 [rows, columns], each side weighed."""
    return 0.5 * float(rows @ np.square(difference, dtype=np.float64) @ columns)


def allocate(table: Mapping[str, list[Choice]], budget: int) -> dict[str, Choice] | None:
    """The choices of least loss in all that fit into a budget; None where not even the smallest do.

    Steps along the lower convex hull of each tensor's choices are taken in the order of what a byte gains. That is
    optimal for every budget that such a step ends at; what the last step leaves over goes to the next ones that fit.

    Args:
        table: tensor → its choices, in any order.
        budget: bytes of all tensors.
    """
    hulls = {name: _hull(choices) for name, choices in table.items()}
    taken = dict.fromkeys(hulls, 0)
    left = budget - sum(hull[0].bytes for hull in hulls.values())
    if left < 0:
        return None
    steps = [(_gain(*hull[i : i + 2]), name, i + 1) for name, hull in hulls.items() for i in range(len(hull) - 1)]
    for _, name, i in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        cost = hulls[name][i].bytes - hulls[name][taken[name]].bytes
        if i == taken[name] + 1 and cost <= left:
            taken[name], left = i, left - cost
    return {name: hulls[name][i] for name, i in taken.items()}


def _hull(choices: list[Choice]) -> list[Choice]:
    """Choices that are best for some price of a byte, smallest first."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.bytes, c.loss)):
        if hull and choice.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-1], choice) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(smaller: Choice, larger: Choice) -> float:
    """Loss that a byte more takes away."""
    if larger.bytes == smaller.bytes:
        return float("inf")
    return (smaller.loss - larger.loss) / (larger.bytes - smaller.bytes)
