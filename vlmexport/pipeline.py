"""The three stations of an export joined: checkpoint → statistics → bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.artifact.bundle import fingerprints
from vlmexport.artifact.staging import refuse_destination
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.locate import open_model
from vlmexport.console import QUIET, Console
from vlmexport.recipe import Recipe

if TYPE_CHECKING:
    from vlmexport.calibrate import Statistics


def export(
    model: str, recipe: Recipe, output: Path | None = None, *, force: bool = False, console: Console = QUIET
) -> Path:
    """Export a model by a recipe; the folder of the bundle is returned.

    Args:
        model: a folder, a Hub id, or ``demo``.
        output: the bundle's folder; ``<name>-<recipe>`` here where it is None.

    Raises:
        UsageError: the output exists and ``force`` is not set.
        CheckpointError: the model is missing or damaged.
        Unsupported: the format cannot hold the model.
    """
    checkpoint = open_model(model)
    destination = output or Path(f"{_name(model, checkpoint)}-{recipe.name}")
    refuse_destination(destination, force)
    if recipe.format == "onnx":
        from vlmexport.artifact.onnx import export_onnx as write
    else:
        from vlmexport.artifact.gguf import export_gguf as write
        from vlmexport.artifact.gguf import refuse_gguf

        refuse_gguf(checkpoint, recipe)
    write(checkpoint, recipe, _statistics(checkpoint, recipe, console), destination, force=force, console=console)
    return destination


def _name(model: str, checkpoint: Checkpoint) -> str:
    return "demo" if model == "demo" else checkpoint.spec.name


def _statistics(checkpoint: Checkpoint, recipe: Recipe, console: Console) -> Statistics | None:
    """Statistics, where the recipe needs any."""
    return _calibrated(checkpoint, recipe.calibration.samples, console) if recipe.needs_statistics else None


def _calibrated(checkpoint: Checkpoint, samples: int | None, console: Console) -> Statistics:
    """Imported here: calibration needs torch, an export without it does not."""
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.cache import statistics

    return statistics(checkpoint, fingerprints(checkpoint), calibration_samples(samples), console)


def calibrate_to(model: str, output: Path, samples: int | None, console: Console = QUIET) -> dict[str, int]:
    """Collect statistics and write them to a file; the number of layers and samples is returned."""
    found = _calibrated(open_model(model), samples, console)
    found.save(output)
    return {"layers": len(found.layers), "samples": len(found.samples)}
