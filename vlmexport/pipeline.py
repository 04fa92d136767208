"""The three stations of an export joined: checkpoint → statistics → bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.staging import refuse_destination
from vlmexport.console import QUIET, Console
from vlmexport.errors import UsageError
from vlmexport.files import whole
from vlmexport.model import plugins
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint
from vlmexport.source.locate import open_model

if TYPE_CHECKING:
    from vlmexport.calibrate import Statistics
    from vlmexport.calibrate.sensitivity import Sensitivity
    from vlmexport.fallback.search import Fallback


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
    refuse_destination(destination, force)
    write: Callable[..., Manifest]
    if recipe.format == "onnx":
        if recipe.onnx.fused_decoder:
            plugins.check_fused(checkpoint.spec.language)
        from vlmexport.artifact.onnx.export import export_onnx as write
    else:
        from vlmexport.artifact.gguf.export import refuse_gguf

        refuse_gguf(checkpoint, recipe)
        if recipe.gguf.vision == "onnx":
            from vlmexport.artifact.hybrid import export_hybrid as write
        else:
            from vlmexport.artifact.gguf.export import export_gguf as write
    found = _statistics(checkpoint, recipe, console, dask)
    more: dict[str, Any] = {}
    if recipe.int8_components and recipe.onnx.fallback == "measured":
        more["fallback"] = _fallback(checkpoint, recipe)
    if recipe.format == "gguf" and recipe.gguf.budget:
        more["sensitivity"] = _sensitivity(checkpoint, recipe.calibration.samples, console)
    write(checkpoint, recipe, found, destination, force=force, console=console, **more)
    return destination


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


def _statistics(checkpoint: Checkpoint, recipe: Recipe, console: Console, dask: str | None) -> Statistics | None:
    """Statistics, where the recipe needs any, of the components that need them."""
    if not recipe.needs_statistics:
        return None
    return _calibrated(checkpoint, recipe.calibration.samples, console, dask, recipe.statistics_components)


def _calibrated(
    checkpoint: Checkpoint,
    samples: int | None,
    console: Console,
    dask: str | None,
    components: tuple[str, ...] = COMPONENTS,
) -> Statistics:
    """Imported here: calibration needs torch, an export without it does not."""
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.cache import statistics

    return statistics(checkpoint, calibration_samples(samples), console, components=components, dask=dask)


def _fallback(checkpoint: Checkpoint, recipe: Recipe) -> Fallback | None:
    """What measures int8 layers; None where the decoder is one that calibration does not hold in memory either."""
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.collect import LARGE
    from vlmexport.fallback.search import Fallback
    from vlmexport.model import load

    components = recipe.int8_components
    if sum(checkpoint.parameters(component) for component in components) >= LARGE:
        return None
    needed = COMPONENTS if "language" in components else COMPONENTS[:2]
    samples = calibration_samples(recipe.calibration.samples)
    return Fallback(
        lambda: (load(checkpoint, components=needed, resident=True), checkpoint.tokenizer),
        samples, recipe.gates,
    )  # fmt: skip


def _sensitivity(checkpoint: Checkpoint, samples: int, console: Console) -> Sensitivity:
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.cache import sensitivity

    return sensitivity(checkpoint, calibration_samples(samples), console)


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
    """Collect statistics and write them to a file; the number of layers and samples is returned.

    Raises:
        UsageError: the file cannot be written there, or it exists and ``force`` is not set.
    """
    _refuse_file(output, force)
    found = _calibrated(open_whole(model, vision_tower, console), samples, console, dask)
    with whole(output) as temporary:
        found.save(temporary)
    return {"layers": len(found.layers), "samples": len(found.samples)}


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
