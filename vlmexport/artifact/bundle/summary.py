"""The last check's result in short, as manifest, card and benchmarks keep it."""

from __future__ import annotations

from pydantic import Field

from vlmexport.artifact.bundle.models import Part

Measures = dict[str, dict[str, float]]
"""Stage → measure → value."""


class Gate(Part):
    """One gate, judged."""

    stage: str
    mode: str
    metric: str
    value: float | None = Field(None, description="None where nothing was measured, or no number came out.")
    bound: float
    at_least: bool
    passed: bool


class _Verdict(Part):
    passed: bool
    broken_stage: str | None = None


class StockSummary(_Verdict):
    """What the library computes without our repairs."""

    samples: int
    stages: Measures


class ViewsSummary(Part):
    """What a budget of views costs the float model by itself."""

    most: int
    without: int | None = None
    samples: int
    stages: Measures
    error: str | None = None


class CoreSummary(_Verdict):
    """What a core of another machine computes; ``beside``: held against this machine."""

    core: str
    runtime: str
    kernels: str | None = None
    stages: Measures
    beside: Measures


class ParitySummary(_Verdict):
    """What a check found."""

    samples: int
    runtime: str
    kernels: str | None = Field(None, description="Int8 kernels that it ran on.")
    notes: list[str]
    gates: list[Gate] = Field(default_factory=list)
    stages: Measures
    stock: StockSummary | None = None
    cores: list[CoreSummary] = Field(default_factory=list)
    views: ViewsSummary | None = None
