"""The three stations of an export joined: checkpoint → statistics → bundle."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle import fingerprints
from vlmexport.calibrate import Statistics, calibration_samples
from vlmexport.calibrate.cache import statistics
from vlmexport.checkpoint import Checkpoint
from vlmexport.checkpoint.locate import open_model
from vlmexport.console import QUIET, Console
from vlmexport.errors import UsageError
from vlmexport.recipe import Recipe


def export(
    model: str, recipe: Recipe, output: Path | None = None, *, force: bool = False, console: Console = QUIET,
    dask: str | None = None,
) -> Path:  # fmt: skip
    """Export a model by a recipe; the folder of the bundle is returned.

    Args:
        model: a folder, a Hub id, or ``demo``.
        output: the bundle's folder; ``<name>-<recipe>`` here where it is None.
        dask: where calibration runs: a scheduler's address, or ``local:N``; in this process where it is None.

    Raises:
        UsageError: the output exists and ``force`` is not set.
        CheckpointError: the model is missing or damaged.
        Unsupported: the format cannot hold the model.
    """
    checkpoint = open_model(model)
    destination = output or Path(f"{_name(model, checkpoint)}-{recipe.name}")
    if destination.exists() and not force:
        raise UsageError(f"{destination} exists already", "pass --force to replace it, or another --output")
    if recipe.format == "onnx":
        from vlmexport.artifact.onnx import export_onnx as write
    else:
        from vlmexport.artifact.gguf import export_gguf as write
        from vlmexport.artifact.gguf import refuse_gguf

        refuse_gguf(checkpoint, recipe)
    found = _statistics(checkpoint, recipe, console, dask)
    write(checkpoint, recipe, found, destination, force=force, console=console)
    return destination


def _name(model: str, checkpoint: Checkpoint) -> str:
    return "demo" if model == "demo" else checkpoint.spec.name


def _statistics(checkpoint: Checkpoint, recipe: Recipe, console: Console, dask: str | None = None) -> Statistics | None:
    """Statistics, where the recipe needs any, of the components that need them."""
    if not recipe.needs_statistics:
        return None
    return statistics(
        checkpoint, fingerprints(checkpoint), calibration_samples(recipe.calibration.samples), console,
        components=recipe.statistics_components, dask=dask,
    )  # fmt: skip


def calibrate_to(
    model: str, output: Path, samples: int | None, console: Console = QUIET, dask: str | None = None
) -> dict[str, int]:
    """Collect statistics and write them to a file; the number of layers and samples is returned."""
    checkpoint = open_model(model)
    found = statistics(checkpoint, fingerprints(checkpoint), calibration_samples(samples), console, dask=dask)
    found.save(output)
    return {"layers": len(found.layers), "samples": len(found.samples)}
