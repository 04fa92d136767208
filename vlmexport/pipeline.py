"""The three stations of an export joined: checkpoint → measure → write."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.staging import refuse_destination, scratch, staged
from vlmexport.artifact.write import Writer
from vlmexport.console import QUIET, Console
from vlmexport.errors import UsageError
from vlmexport.files import whole
from vlmexport.measure import calibrated, measure
from vlmexport.model import plugins
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model
from vlmexport.workers.memory import give_back

if TYPE_CHECKING:
    from vlmexport.calibrate import Statistics


def export(
    model: str,
    recipe: Recipe,
    output: Path | None = None,
    *,
    vision_tower: str | None = None,
    force: bool = False,
    console: Console = QUIET,
    dask: str | None = None,
) -> Path:
    """Export a model by a recipe; the folder of the bundle is returned.

    Args:
        model: a folder, a Hub id, or ``demo``.
        vision_tower: a CLIP folder, for a model that does not carry its tower.
        output: the bundle's folder; ``<name>-<recipe>`` here where it is None.
        dask: where calibration runs: a scheduler's address, or ``local:N``; in this process where it is None.

    Raises:
        UsageError: the output exists and ``force`` is not set.
        CheckpointError: the model is missing or damaged.
        Unsupported: the format cannot hold the model.
    """
    checkpoint = open_whole(model, vision_tower, console)
    if getattr(plugins.projector(checkpoint.spec.projector), "ROUNDS", False):
        recipe = recipe.model_copy(update={"gates": recipe.gates.behind_rounding()})
    destination = output or Path(f"{_name(model, checkpoint)}-{recipe.name}")
    export_checkpoint(checkpoint, recipe, destination, force=force, console=console, dask=dask)
    return destination


def export_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    destination: Path,
    *,
    force: bool = False,
    console: Console = QUIET,
    dask: str | None = None,
    statistics: Statistics | None = None,
) -> Manifest:
    """Measure what a recipe needs, and write a bundle by it; its manifest is returned.

    Args:
        statistics: of a calibration pass, where there was one already.

    Raises:
        UsageError: the destination exists and ``force`` is not set, the disk is too small, or the recipe asks for what
            the model has not.
        ParityFailed: a traced graph is not the float model; nothing is written.
        Unsupported: the format cannot hold the model.
        MissingDependency: a package that writes the format is not installed.
    """
    refuse_destination(destination, force)
    checkpoint, aside = checkpoint.within(recipe.max_views), scratch(destination)
    writer = Writer(checkpoint, recipe, aside)
    writer.refuse()
    with staged(destination, force, writer.bytes_needed) as folder:
        measured = measure(
            checkpoint, recipe, aside, writer.graph, console=console, dask=dask, statistics=statistics
        )  # fmt: skip
        give_back()
        return writer.write(measured, folder, console)


def open_whole(model: str, vision_tower: str | None = None, console: Console = QUIET) -> Checkpoint:
    """Open a model and look at all of it that is not a weight, before anything long begins.

    Raises:
        CheckpointError: the model is missing or damaged, its projector's tensors and its tokenizer included.
        Unsupported: a part of it is not known.
    """
    checkpoint = open_model(model, vision_tower, console)
    plugins.check_parts(checkpoint)
    _ = checkpoint.tokenizer
    return checkpoint


def _name(model: str, checkpoint: Checkpoint) -> str:
    return "demo" if model == "demo" else checkpoint.spec.name


def calibrate_to(
    model: str,
    output: Path,
    samples: int | None,
    *,
    vision_tower: str | None = None,
    force: bool = False,
    console: Console = QUIET,
    dask: str | None = None,
) -> dict[str, int]:
    """Collect statistics and write them to a file; the number of layers, samples and views is returned: those that are
    tiles, and those of a whole picture.

    Raises:
        UsageError: the file cannot be written there, or it exists and ``force`` is not set.
    """
    _refuse_file(output, force)
    found = calibrated(open_whole(model, vision_tower, console), samples, console, dask)
    with whole(output) as temporary:
        found.save(temporary)
    return {"layers": len(found.layers), "samples": len(found.samples), **asdict(found.views)}


def _refuse_file(output: Path, force: bool) -> None:
    """As ``refuse_destination``, for a file of statistics."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise UsageError(f"{output} cannot be written", "name a file in a folder that exists")
    if not output.exists():
        return
    if not force:
        raise UsageError(f"{output} exists already", "pass --force to replace it, or another --output")
    try:
        with safe_open(output, framework="numpy") as file:
            ours = "samples" in (file.metadata() or {})
    except (SafetensorError, OSError):
        ours = False
    if not ours:
        raise UsageError(f"{output} holds no statistics of vlmexport", "pass another --output; it was left alone")
