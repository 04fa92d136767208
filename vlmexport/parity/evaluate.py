"""One evaluation: float model and bundle opened, run over samples, and closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmexport.artifact.bundle import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.checkpoint import Checkpoint
from vlmexport.parity.compare import Comparison
from vlmexport.parity.expected import Expected, Live
from vlmexport.parity.measured import Measured
from vlmexport.runtime.opening import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the names and notes of what it was measured with."""

    measured: Measured
    reference: str
    runtime: str
    notes: tuple[str, ...]
    stock: Measured | None = None
    """Without our repairs, of the first samples; None where the runtime has none."""


def run_samples(
    bundle: Path,
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    advance: Callable[[], None] = lambda: None,
    share: float = 0.5,
    stock: int = 0,
) -> Evaluation:
    """Compare a bundle with its float model over samples.

    Args:
        share: of the available memory that the float model may take, as in ``model.load``.
        stock: samples to run without our repairs too.
    """
    return run_against(bundle, Live(ReferenceRuntime(checkpoint, share=share)), samples, advance, stock)


def run_against(
    bundle: Path,
    expected: Expected,
    samples: Sequence[Sample],
    advance: Callable[[], None] = lambda: None,
    stock: int = 0,
) -> Evaluation:
    """The same with the float model's values from wherever they are."""
    runtime = open_runtime(bundle, read_manifest(bundle))
    comparison = Comparison(expected, runtime, stock)
    try:
        comparison.run(samples, advance)
        notes = tuple(runtime.notes)
        return Evaluation(comparison.measured, expected.name, runtime.name, notes, comparison.stock)
    finally:
        runtime.close()
