"""``vlmexport check``: hashes first, then the five stages, then the gates."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from vlmexport.artifact.bundle.contents import tool_versions, verify
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.bundle.write import store_result
from vlmexport.bench import Request, halves
from vlmexport.calibrate import Sample
from vlmexport.calibrate.samples import image_hashes
from vlmexport.console import QUIET, Console
from vlmexport.errors import UsageError, VlmExportError
from vlmexport.measures.gates import broken_stage, earliest, judge
from vlmexport.measures.stage_result import GateResult
from vlmexport.parity.baseline import SLACK, compared, read_baseline, refuse_baseline
from vlmexport.parity.compare.clients import More, client_gates
from vlmexport.parity.compare.evaluate import CoreRun, Evaluation
from vlmexport.parity.compare.measured import Measured
from vlmexport.parity.compare.source import Against
from vlmexport.parity.layers.bisect import bisect as layer_by_layer
from vlmexport.parity.layers.bisect import worst
from vlmexport.parity.layers.int8_weights import compare_weights, weight_gates
from vlmexport.parity.pictures import pictures
from vlmexport.parity.result import CoreResult, Inputs, ParityResult, StockResult, WeightsResult
from vlmexport.parity.samples import Chosen, choose
from vlmexport.parity.summary import summary
from vlmexport.runtime.open import Machine
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.text import plain

RESULT = "parity.json"
PACKAGES = ("torch", "transformers", "numpy", "pillow", "onnxruntime", "llama-cpp-python")
DEFAULT_SAMPLES = 120
"""Four questions about each of 30 images: a verdict on the demo within a minute on two cores."""

CORE_SAMPLES = 20
"""Questions where cores are emulated, which is slow: about five images, because an image takes the longest."""

_NEW_TOKENS = 8
"""Of an answer whose memory is measured: the prompt takes most of it."""

STOCK_SAMPLES = 20
"""Samples that are also run without our repairs: enough for a verdict, and a tenth of the time at most."""


def check(
    bundle: Path,
    *,
    reference: str | None = None,
    vision_tower: str | None = None,
    samples: list[Sample] | int | None = None,
    data: Path | None = None,
    console: Console = QUIET,
    dask: str | None = None,
    strict_stock: bool = False,
    record: Path | None = None,
    replay: Path | None = None,
    baseline: Path | None = None,
    slack: float | None = None,
    on: Machine | None = None,
    client: More | None = None,
    bisect: bool = False,
    memory: bool = False,
) -> ParityResult:
    """Compare a bundle with its float model; writes ``parity.json``, and updates manifest and card.

    Args:
        reference: folder, Hub id or ``demo``; the one that the manifest names where it is None.
        vision_tower: the reference's tower, where it carries none and the folder that the manifest names has moved.
        samples: held-out samples, or how many of the shipped ones or of ``data``; None is 120, with ``on`` 20.
        data: a folder of images, or a file of questions or captions, in place of the shipped samples.
        dask: where the samples run: a scheduler's address, or ``local:N``; in this process where it is None.
        strict_stock: what the library computes without our repairs must pass the gates too.
        record: write the float model's values to this file, for checks where the float model is not.
        replay: take them from there.
        baseline: an earlier ``parity.json``; what got worse fails.
        slack: how much worse is none, as a share of the baseline's losses; 0.1 where it is None.
        on: a machine whose cores the bundle runs on as well; then the verdict is theirs.
        client: one whose pixels are measured too: transformers.js under Node.
        bisect: find the first layer that diverges, and rank int8 layers, on the sample that suffers most.
        memory: measure the peak memory of vision and decoder, on the first sample.

    Raises:
        ParityFailed: a file of the bundle is missing or changed. (A gate that fails is a result, not an error.)
        CheckpointError: the reference is another model than the bundle was made from, or configured otherwise.
        NotEnoughData: fewer than 20 samples.
        MissingDependency: the other machine is not set up.
        UsageError: baseline or recording are none, or of another comparison; the data cannot be read; or the bundle
            cannot run on another machine.
    """
    if on is not None and dask is not None:
        raise UsageError(f"--on {on} does not run on Dask's workers", "leave out --dask or --on")
    if client is not None and dask is not None:
        raise UsageError(f"--client {client} does not run on Dask's workers", "leave out --dask or --client")
    if bisect and replay is not None:
        raise UsageError("--bisect runs the float model, which --replay does without", "leave out one of them")
    old = read_baseline(baseline) if baseline else None
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    chosen = choose(manifest, samples or (CORE_SAMPLES if on else DEFAULT_SAMPLES), data)
    inputs = _inputs(manifest, chosen.samples)
    if baseline and old:
        refuse_baseline(baseline, old, manifest, inputs)
    against = Against(
        manifest, inputs, reference=reference, vision_tower=vision_tower, dask=dask, record=record, replay=replay,
        machine=on, console=console, client=client,
    )  # fmt: skip
    result = _compare(bundle, manifest, against, chosen, inputs, console)
    if strict_stock:
        result = _strict(result)
    if bisect and against.checkpoint:
        result = _with_layers(result, bundle, manifest, against.checkpoint, chosen, console)
    if memory:
        result = _with_memory(result, bundle, manifest, chosen)
    if old:
        result = compared(result, old, SLACK if slack is None else slack)
    store_result(bundle, manifest, RESULT, result.model_dump_json(indent=2) + "\n", summary(result))
    return result


def _compare(
    bundle: Path, manifest: Manifest, against: Against, chosen: Chosen, inputs: Inputs, console: Console
) -> ParityResult:
    start, samples = time.monotonic(), chosen.samples
    with console.progress(f"checking {bundle.name}", len(samples)) as advance:
        run = against.run(bundle, samples, advance, STOCK_SAMPLES)
    stages = run.measured.stages()
    weights = compare_weights(bundle, manifest, against.checkpoint) if against.checkpoint else None
    anywhere = client_gates(stages, manifest.image_processor)
    anywhere += weight_gates(weights) if weights else []
    gates = judge(manifest.recipe.gates, stages, anywhere)
    cores = [_core(core, manifest) for core in run.cores]
    passed, broken = _verdict(gates, cores, anywhere)
    return ParityResult(
        bundle=plain(bundle.resolve().name),
        kind=manifest.kind,
        recipe=manifest.recipe.name,
        target=manifest.recipe.target,
        reference=f"{manifest.source.name} ({run.reference})",
        runtime=run.runtime,
        kernels=run.kernels,
        notes=_notes(run, chosen, weights),
        data=chosen.data,
        samples=run.measured.samples,
        images=len(run.measured.images),
        stages=stages,
        gates=gates,
        answers=run.measured.answers["chained"],
        passed=passed,
        broken_stage=broken,
        seconds=time.monotonic() - start,
        stock=_stock(run.stock, manifest),
        views=against.views(run),
        cores=cores,
        inputs=inputs,
        weights=weights,
        versions=tool_versions(*PACKAGES),
        pictures=pictures(run.measured, samples, manifest.image_processor),
    )


def _with_layers(
    result: ParityResult, bundle: Path, manifest: Manifest, checkpoint: Checkpoint, chosen: Chosen, console: Console
) -> ParityResult:
    """The result with what ``--bisect`` finds; where the runtime cannot show its layers, the verdict stands."""
    sample = worst(chosen.samples, result.answers)
    try:
        found = layer_by_layer(bundle, manifest, checkpoint, sample, console)
    except VlmExportError as error:
        return result.model_copy(update={"notes": [*result.notes, f"--bisect could not look into it: {error}"]})
    return result.model_copy(update={"bisect": found})


def _with_memory(result: ParityResult, bundle: Path, manifest: Manifest, chosen: Chosen) -> ParityResult:
    """The result with what each half of the bundle takes; where one cannot be run, the verdict stands."""
    sample = chosen.samples[0]
    try:
        found = halves(bundle, manifest, Request(sample.image(), sample.question, _NEW_TOKENS))
    except VlmExportError as error:
        return result.model_copy(update={"notes": [*result.notes, f"memory could not be measured: {error}"]})
    return result.model_copy(update={"components": found})


def _notes(run: Evaluation, chosen: Chosen, weights: WeightsResult | None) -> list[str]:
    notes = [*run.notes, *chosen.notes]
    if not any(sample.answers for sample in chosen.samples):
        notes.append("no sample says which answer is right: accuracy was not judged, equality with the float model was")
    if weights and weights.not_compared:
        shown = ", ".join(weights.not_compared[:3])
        notes.append(f"{len(weights.not_compared)} int8 layers hold no tensor of the float model as it is ({shown})")
    return notes


def _verdict(gates: list[GateResult], cores: list[CoreResult], anywhere: list[GateResult]) -> tuple[bool, str | None]:
    """Whether it passed, and the stage where not: of the cores where there are some, else of the run here. Wrong
    weights, and wrong pixels of clients, are wrong wherever the bundle runs."""
    if not cores:
        return all(gate.passed for gate in gates), broken_stage(gates)
    broken = [broken_stage(anywhere), *(core.broken_stage for core in cores)]
    passed = all(gate.passed for gate in anywhere) and all(core.passed for core in cores)
    return passed, earliest(broken)


def _core(run: CoreRun, manifest: Manifest) -> CoreResult:
    """What a core of another machine computes, judged by the same gates."""
    stages = [stage for stage in run.measured.stages() if stage.mode == "chained"]
    gates = judge(manifest.recipe.gates, stages)
    return CoreResult(
        core=run.core,
        runtime=run.runtime,
        kernels=run.kernels,
        stages=stages,
        gates=gates,
        answers=run.measured.answers["chained"],
        passed=all(gate.passed for gate in gates),
        broken_stage=broken_stage(gates),
        beside=run.beside.stages(),
    )


def _inputs(manifest: Manifest, samples: list[Sample]) -> Inputs:
    """What a comparison is of."""
    asked = json.dumps([[*sample.facts(), sample.answers] for sample in samples])
    return Inputs(
        weights=manifest.source.weights,
        files={file.path: file.sha256 for file in manifest.files},
        samples=hashlib.sha256(asked.encode()).hexdigest(),
        images=image_hashes(samples),
        spec=manifest.source.configuration,
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
    broken = earliest([result.broken_stage, result.stock.broken_stage])
    return result.model_copy(update={"strict_stock": True, "passed": False, "broken_stage": broken})
