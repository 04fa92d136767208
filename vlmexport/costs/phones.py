"""Named phones: what their memory and cores can do at most, and which share of that inference reaches (phones.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from vlmexport.errors import UsageError

_OPERATIONS = 32
"""Of int8 in one SDOT of 128 bits."""

_GIGA = 10**9


@dataclass(frozen=True)
class Range:
    """Seconds, at best and at worst."""

    low: float
    high: float

    def __str__(self) -> str:
        unit, factor = ("s", 1.0) if self.high >= 1 else ("ms", 1000.0)
        return f"{_two_digits(self.low * factor)}–{_two_digits(self.high * factor)} {unit}"


def _two_digits(value: float) -> str:
    """120 for 123, never 1.2e+02."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:g}"


@dataclass(frozen=True)
class Phone:
    """A phone. ``cores`` are GHz and SDOT instructions a cycle; shares are (worst, best).

    Attributes:
        bandwidth: bytes a second of main memory.
        token, product: shares of bandwidth and of int8 operations that are reached.
    """

    key: str
    name: str
    source: str
    bandwidth: float
    cores: tuple[tuple[float, float], ...]
    token: tuple[float, float]
    product: tuple[float, float]

    @property
    def operations(self) -> float:
        """Int8 operations a second at most."""
        return sum(frequency * rate for frequency, rate in self.cores) * _GIGA * _OPERATIONS

    def read(self, size: int) -> Range:
        """Seconds to read weights of so many bytes once, which is what bounds a token."""
        worst, best = self.token
        return Range(size / (self.bandwidth * best), size / (self.bandwidth * worst))

    def multiply(self, operations: int) -> Range:
        """Seconds of so many int8 operations, which is what bounds an image and a prompt."""
        worst, best = self.product
        return Range(operations / (self.operations * best), operations / (self.operations * worst))


@cache
def phones() -> dict[str, Phone]:
    """All of phones.toml, by key."""
    data: dict[str, Any] = tomllib.loads(files("vlmexport.costs").joinpath("phones.toml").read_text("utf-8"))
    shares = {name: (low, high) for name, (low, high) in data["efficiency"].items()}
    return {
        key: Phone(
            key=key,
            name=values["name"],
            source=values["source"],
            bandwidth=values["bandwidth"] * _GIGA,
            cores=tuple((frequency, rate) for frequency, rate in values["cores"]),
            **shares,
        )
        for key, values in data["phones"].items()
    }


def choose_phones(keys: Sequence[str] | None) -> list[Phone]:
    """Those of some keys; all where there are none.

    Raises:
        UsageError: unknown; the message says which are known.
    """
    for key in keys or ():
        if key not in phones():
            raise UsageError(f"unknown phone {key!r}", f"known: {', '.join(phones())}")
    return [phones()[key] for key in keys or phones()]
