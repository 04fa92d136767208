"""``vlmexport check``: hashes first, then the five stages, then the gates."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vlmexport.artifact.bundle import Manifest, fingerprints, read_manifest, verify, write_manifest
from vlmexport.calibrate import Sample, heldout_samples
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.locate import open_model
from vlmexport.console import QUIET, Console
from vlmexport.errors import CheckpointError, NotEnoughData
from vlmexport.parity.evaluate import run_samples
from vlmexport.parity.gates import broken_stage, judge
from vlmexport.parity.measured import Measured
from vlmexport.parity.result import ParityResult, StockResult

RESULT = "parity.json"
MIN_SAMPLES = 20
DEFAULT_SAMPLES = 250
STOCK_SAMPLES = 20
"""Samples that are also run without our repairs: enough for a verdict, and a tenth of the time at most."""


def check(
    bundle: Path,
    *,
    reference: str | None = None,
    vision_tower: str | None = None,
    samples: list[Sample] | int = DEFAULT_SAMPLES,
    console: Console = QUIET,
    dask: str | None = None,
    strict_stock: bool = False,
) -> ParityResult:
    """Compare a bundle with its float model; writes ``parity.json``, and updates manifest and card.

    Args:
        reference: folder, Hub id or ``demo``; the one that the manifest names where it is None.
        vision_tower: the reference's tower, where it carries none and the folder that the manifest names has moved.
        samples: held-out samples, or how many of the shipped ones.
        dask: where the samples run: a scheduler's address, or ``local:N``; in this process where it is None.
        strict_stock: what the library computes without our repairs must pass the gates too.

    Raises:
        ParityFailed: a file of the bundle is missing or changed. (A gate that fails is a result, not an error.)
        CheckpointError: the reference is another model than the bundle was made from.
        NotEnoughData: fewer than 20 samples.
    """
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    chosen = heldout_samples(samples) if isinstance(samples, int) else samples
    chosen = _unseen(chosen, manifest)
    if len(chosen) < MIN_SAMPLES:
        raise NotEnoughData(f"{len(chosen)} held-out samples are too few for a verdict", f"pass at least {MIN_SAMPLES}")
    checkpoint = _reference(manifest, reference, vision_tower)
    result = _compare(bundle, manifest, checkpoint, chosen, console, dask)
    if strict_stock:
        result = _strict(result)
    temporary = bundle / f".{RESULT}.partial"
    temporary.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, bundle / RESULT)
    write_manifest(bundle, manifest.model_copy(update={"parity": _summary(result)}))
    return result


def _compare(
    bundle: Path, manifest: Manifest, checkpoint: Checkpoint, samples: list[Sample], console: Console, dask: str | None
) -> ParityResult:
    start = time.monotonic()
    with console.progress(f"checking {bundle.name}", len(samples)) as advance:
        if dask is not None:
            from vlmexport.parity.spread import evaluate

            run = evaluate(bundle, checkpoint, samples, dask, advance, STOCK_SAMPLES)
        else:
            run = run_samples(bundle, checkpoint, samples, advance, stock=STOCK_SAMPLES)
    notes = list(run.notes)
    if all(sample.answer is None for sample in samples):
        notes.append("no sample says which answer is right: accuracy was not judged, equality with the float model was")
    stages = run.measured.stages()
    gates = judge(manifest.recipe.gates, stages)
    return ParityResult(
        bundle=bundle.name,
        kind=manifest.kind,
        recipe=manifest.recipe.name,
        reference=f"{checkpoint.spec.name} ({run.reference})",
        runtime=run.runtime,
        notes=notes,
        samples=run.measured.samples,
        images=len(run.measured.images),
        stages=stages,
        gates=gates,
        answers=run.measured.answers["chained"],
        passed=all(gate.passed for gate in gates),
        broken_stage=broken_stage(gates),
        seconds=time.monotonic() - start,
        stock=_stock(run.stock, manifest),
    )


def _stock(measured: Measured | None, manifest: Manifest) -> StockResult | None:
    """What the library computes without our repairs, judged by the same gates."""
    if measured is None:
        return None
    stages = [stage for stage in measured.stages() if stage.mode == "chained"]
    gates = judge(manifest.recipe.gates, stages)
    passed = all(gate.passed for gate in gates)
    return StockResult(
        samples=measured.samples, stages=stages, gates=gates, passed=passed, broken_stage=broken_stage(gates)
    )


def _strict(result: ParityResult) -> ParityResult:
    """The same, failed where the library fails without our repairs."""
    if result.stock is None or result.stock.passed:
        return result.model_copy(update={"strict_stock": True})
    broken = result.broken_stage or result.stock.broken_stage
    return result.model_copy(update={"strict_stock": True, "passed": False, "broken_stage": broken})


def _unseen(samples: list[Sample], manifest: Manifest) -> list[Sample]:
    """Samples that calibration has not used."""
    used = set(manifest.calibration.samples if manifest.calibration else ())
    return [sample for sample in samples if sample.id not in used]


def _reference(manifest: Manifest, reference: str | None, vision_tower: str | None) -> Checkpoint:
    """The float model, when its weights are those that the bundle was made from."""
    checkpoint = open_model(reference or manifest.source.path, vision_tower or manifest.source.vision_tower)
    if fingerprints(checkpoint) != manifest.source.weights:
        raise CheckpointError(
            f"{checkpoint.path} is not the model that this bundle was made from (its weights differ)",
            "pass the right one with --reference",
        )
    return checkpoint


def _summary(result: ParityResult) -> dict[str, object]:
    """What the manifest and the card keep of a result."""
    return {
        "passed": result.passed,
        "broken_stage": result.broken_stage,
        "samples": result.samples,
        "runtime": result.runtime,
        "notes": result.notes,
        "gates": [gate.model_dump() for gate in result.gates],
        "stages": {stage.stage: stage.metrics for stage in result.stages if stage.mode == "chained"},
        "stock": _stock_summary(result.stock),
    }


def _stock_summary(stock: StockResult | None) -> dict[str, object] | None:
    if stock is None:
        return None
    stages = {stage.stage: stage.metrics for stage in stock.stages}
    return {
        "passed": stock.passed,
        "broken_stage": stock.broken_stage,
        "samples": stock.samples,
        "stages": stages,
    }
