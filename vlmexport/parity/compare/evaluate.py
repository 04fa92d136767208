"""One evaluation: float model and bundle opened, run over samples, and closed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.parity.compare.clients import More, open_clients
from vlmexport.parity.compare.kernels import bundle_kernels
from vlmexport.parity.compare.machines import KernelDifference
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.compare.views import WithoutBudget
from vlmexport.parity.reference.values import Expected, Live
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.open import Machine, open_cores, open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint


@dataclass(frozen=True)
class CoreRun:
    """What was measured on a core: against the float model, and against the same bundle here."""

    core: str
    runtime: str
    measured: Measured
    beside: KernelDifference
    kernels: Int8Kernels | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the names and notes of what it was measured with."""

    measured: Measured
    reference: str
    runtime: str
    notes: tuple[str, ...]
    stock: Measured | None = None
    """Without our repairs, of the first samples; None where the runtime has none."""
    cores: list[CoreRun] = field(default_factory=list)
    kernels: Int8Kernels | None = None
    """None where nothing is int8."""
    without: Measured | None = None
    """The float model under its budget of views against itself without it; None where there is none."""


def run_samples(
    bundle: Path,
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    advance: Callable[[], None] = lambda: None,
    share: float = 0.5,
    stock: int = 0,
    machine: Machine | None = None,
    client: More | None = None,
) -> Evaluation:
    """Compare a bundle with its float model over samples.

    Args:
        share: of the available memory that the float model may take, as in ``model.load``.
        stock: samples to run without our repairs too.
        machine: on whose cores the bundle runs too.
        client: whose pixels are measured too.
    """
    reference = ReferenceRuntime(checkpoint, share=share)
    return run_against(
        bundle, Live(reference), samples, advance, stock, machine, client, without_budget(reference)
    )  # fmt: skip


def without_budget(reference: ReferenceRuntime) -> WithoutBudget | None:
    """The float model without its budget of views; None where there is none."""
    found = reference.without_budget()
    return None if found is None else WithoutBudget(found)


def run_against(
    bundle: Path,
    expected: Expected,
    samples: Sequence[Sample],
    advance: Callable[[], None] = lambda: None,
    stock: int = 0,
    machine: Machine | None = None,
    client: More | None = None,
    without: WithoutBudget | None = None,
) -> Evaluation:
    """The same with the float model's values from wherever they are.

    Args:
        without: the float model without its budget of views, to be measured too.
    """
    with ExitStack() as opened:
        manifest = read_manifest(bundle)
        cores = open_cores(bundle, manifest, machine)
        for core in cores.values():
            opened.callback(core.close)
        runtime = opened.enter_context(closing(open_runtime(bundle, manifest)))
        clients = open_clients(bundle, manifest, client)
        for one in clients:
            opened.callback(one.close)
        spec = manifest.image_processor
        comparison = Comparison(expected, runtime, stock, cores, clients, spec, without)
        comparison.run(samples, advance)
        kernels = bundle_kernels(runtime, bundle, manifest)
        runs = [
            CoreRun(name, cores[name].name, *found, bundle_kernels(cores[name], bundle, manifest))
            for name, found in comparison.cores.items()
        ]
        is_bounded = manifest.recipe.onnx.saturation == "avx2"
        here = (*runtime.notes, *(kernels.notes(is_bounded) if kernels else ()))
        notes = tuple(f"here: {note}" for note in here) if cores else here
        notes += tuple(dict.fromkeys(note for core in cores.values() for note in core.notes))
        notes += tuple(dict.fromkeys(note for run in runs if run.kernels for note in run.kernels.notes(is_bounded)))
        return Evaluation(
            comparison.measured, expected.name, runtime.name, notes, comparison.stock, runs, kernels,
            without.measured if without else None,
        )  # fmt: skip
