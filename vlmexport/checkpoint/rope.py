"""Rotary embeddings stretched to more positions than a model was first trained with: their frequencies are divided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import pi
from pathlib import Path
from typing import Any

from vlmexport.errors import Unsupported

_OF_LLAMA3 = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class RopeScaling:
    """``linear`` divides every frequency by ``factor`` (arXiv:2306.15595).

    ``llama3`` divides those whose wave is longer than ``original_max_position_embeddings / low_freq_factor`` positions,
    leaves those whose wave is shorter than ``… / high_freq_factor``, and goes over from one to the other between
    (arXiv:2407.21783). Names are transformers'.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def divisors(self, theta: float, width: int) -> tuple[float, ...]:
        """What the ``width / 2`` frequencies of a head are divided by."""
        return tuple(self._divisor(2 * pi * theta ** (i / width)) for i in range(0, width, 2))

    def _divisor(self, wave: float) -> float:
        if self.rope_type == "linear":
            return self.factor
        waves = self.original_max_position_embeddings / wave
        kept = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = min(1.0, max(0.0, kept))
        return 1 / ((1 - kept) / self.factor + kept)

    def facts(self) -> dict[str, Any]:
        """In transformers' terms, without what its type does not have."""
        found = asdict(self)
        return found if self.rope_type == "llama3" else {k: v for k, v in found.items() if k not in _OF_LLAMA3}


def read_scaling(text: Mapping[str, Any], path: Path) -> RopeScaling | None:
    """What a language model's config says of it; None where nothing is scaled.

    Raises:
        Unsupported: another scaling, which would be left out without a word.
        KeyError, TypeError, ValueError: it is garbled.
    """
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default" if isinstance(rope, dict) else rope
    if isinstance(rope, dict) and rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported(
            f"{path}: partial_rotary_factor is {rope['partial_rotary_factor']}, which is not known",
            "known: rotary embeddings of whole heads",
        )
    if kind in ("default", "dynamic"):  # the latter scales beyond max_position_embeddings alone, where no prompt goes
        return None
    if kind not in ("linear", "llama3"):
        raise Unsupported(f"{path}: rotary embeddings are scaled ({kind})", "known: linear, llama3, dynamic")
    found = RopeScaling(kind, float(rope["factor"]))
    if kind == "llama3":
        low, high, positions = (rope[key] for key in _OF_LLAMA3)
        found = RopeScaling(kind, found.factor, float(low), float(high), int(positions))
    if found.factor <= 0 or found.high_freq_factor <= found.low_freq_factor:
        raise ValueError(f"rope_scaling {rope}")
    return found
