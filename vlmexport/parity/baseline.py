"""A result beside an earlier one of the same comparison: what got worse by more than the slack.

Every measure is turned into a loss, which is 0 at its best: 1 - v for cosines and shares, v for the others. Allowed is
the old loss times 1 + slack, plus a margin for what kernels of another machine change.
"""

from __future__ import annotations

import json
from pathlib import Path

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.errors import UsageError
from vlmexport.measures.gates import AT_LEAST, broken_stage, earliest
from vlmexport.measures.stage_result import StageResult
from vlmexport.parity.reference.same import other_model, other_samples
from vlmexport.parity.result import BaselineResult, Change, Inputs, ParityResult

SLACK = 0.1
_MARGINS = {"cosine": 1e-5, "cosine_p1": 1e-4, "nmse": 1e-6, "kld": 1e-3, "agreement": 2e-3}
_ACCURACY_MARGIN = 0.01
"""One point; one sample where that is more."""


def read_baseline(path: Path) -> ParityResult:
    """An earlier result.

    Raises:
        UsageError: there is no such file, or it is not a result of this schema.
    """
    cure = "`vlmexport check` writes one to BUNDLE/parity.json"
    try:
        return ParityResult.model_validate(json.loads(path.read_bytes()) | {"pictures": []})  # they are not compared
    except FileNotFoundError as error:
        raise UsageError(f"baseline {path} does not exist", cure) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"baseline {path} is no result of this schema", f"make it again: {cure}") from error


def refuse_baseline(path: Path, old: ParityResult, manifest: Manifest, inputs: Inputs) -> None:
    """Raise where the baseline is of another comparison than the one that is about to run.

    Raises:
        UsageError: another recipe, float model or set of samples; the message says what differs.
    """
    recipe = manifest.recipe
    if (old.kind, old.recipe, old.target) != (manifest.kind, recipe.name, recipe.target):
        raise UsageError(
            f"baseline {path} is of {old.recipe} for {old.target}, this bundle is of {recipe.name} for {recipe.target}",
            "pass the baseline of this recipe",
        )
    model = other_model(old.inputs.model, "the baseline", inputs.model, "the bundle")
    if model:
        raise UsageError(f"baseline {path} is of another float model than this bundle ({model})", "make it again")
    samples = other_samples(old.inputs, inputs)
    if samples:
        raise UsageError(
            f"baseline {path} was measured on {samples} ({old.samples} samples)",
            "pass the same --data and --samples, or make the baseline again",
        )


def compared(result: ParityResult, old: ParityResult, slack: float = SLACK) -> ParityResult:
    """The result with its baseline; failed where a measure got worse by more than the slack."""
    now = {(stage.stage, stage.mode): stage for stage in result.stages}
    changes = [
        change
        for stage in old.stages
        for change in _changes(stage, now.get((stage.stage, stage.mode)), old.samples, slack)
    ]
    passed = all(change.passed for change in changes)
    baseline = BaselineResult(
        bundle=old.bundle, versions=old.versions, slack=slack, stages=old.stages, changes=changes, passed=passed
    )
    broken = earliest([result.broken_stage, broken_stage(changes)])
    return result.model_copy(update={"baseline": baseline, "passed": result.passed and passed, "broken_stage": broken})


def _changes(old: StageResult, new: StageResult | None, samples: int, slack: float) -> list[Change]:
    """Every watched measure that the baseline has. One that is gone, or is not a number, got worse."""
    found = []
    for metric, before in old.metrics.items():
        margin = max(_ACCURACY_MARGIN, 1 / samples) if metric == "accuracy" else _MARGINS.get(metric)
        if margin is None:
            continue
        best, sign = (1.0, -1.0) if metric in AT_LEAST else (0.0, 1.0)
        bound = best + sign * (abs(before - best) * (1 + slack) + margin)
        value = new.metrics.get(metric) if new else None
        passed = value is not None and sign * value <= sign * bound
        found.append(
            Change(
                stage=old.stage, mode=old.mode, metric=metric, old=before, value=value,
                bound=bound, at_least=metric in AT_LEAST, passed=passed,
            )
        )  # fmt: skip
    return found
