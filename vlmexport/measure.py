"""Everything that is measured on the float model before a bundle is written: statistics, sensitivities, Hessians, and
which int8 layers go back to float. What needs torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.console import QUIET, Console
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint

if TYPE_CHECKING:
    import onnx_ir as ir

    from vlmexport.calibrate import Statistics
    from vlmexport.calibrate.hessians import Hessians
    from vlmexport.calibrate.sensitivity import Sensitivity
    from vlmexport.fallback.search import Fallback
    from vlmexport.quantize.int8 import Int8


@dataclass(frozen=True)
class Measured:
    """What the writer of a bundle is given; it runs no float model itself. None is what the recipe does not need.

    ``sensitivity`` is what a budget is spent by; ``hessians`` are what GPTQ rounds by; ``int8`` has decided about each
    part with int8 products, and knows which layers a measurement sent back to float.
    """

    statistics: Statistics | None = None
    sensitivity: Sensitivity | None = None
    hessians: Hessians | None = None
    int8: Int8 | None = None


NOTHING = Measured()


def measure(
    checkpoint: Checkpoint,
    recipe: Recipe,
    scratch: Path,
    graph: Callable[[str], ir.Model] | None = None,
    *,
    console: Console = QUIET,
    dask: str | None = None,
    statistics: Statistics | None = None,
) -> Measured:
    """Measure what a recipe needs.

    Args:
        scratch: a folder for Hessians, which are too large to be kept; it must last as long as the result.
        graph: part → its clean float graph; needed where a part is int8.
        dask: where calibration runs: a scheduler's address, or ``local:N``; in this process where it is None.
        statistics: of a calibration pass, where there was one already.

    Raises:
        NotEnoughData: the statistics lack a layer.
    """
    if recipe.needs_statistics and statistics is None:
        statistics = calibrated(checkpoint, recipe.calibration.samples, console, dask, recipe.statistics_components)
    sensitivity = _sensitivity(checkpoint, recipe, console) if recipe.format == "gguf" and recipe.gguf.budget else None
    hessians = _hessians(checkpoint, recipe, scratch, console) if recipe.uses_gptq else None
    int8 = None
    if recipe.int8_components and graph is not None and statistics is not None:
        int8 = _int8(checkpoint, recipe, statistics, graph, console)
    return Measured(statistics if recipe.needs_statistics else None, sensitivity, hessians, int8)


def bytes_aside(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that ``measure`` writes to its scratch folder."""
    return hessian_bytes(checkpoint.spec.language) if recipe.uses_gptq else 0


def hessian_bytes(spec: LanguageSpec) -> int:
    """Bytes of the files that ``calibrate.hessians`` writes, to a percent: a layer has four inputs of linear layers."""
    columns = (spec.hidden_size, spec.num_heads * spec.head_dim, spec.hidden_size, spec.intermediate_size)
    return spec.num_layers * sum(4 * size * size for size in columns)


def calibrated(
    checkpoint: Checkpoint,
    samples: int | None,
    console: Console = QUIET,
    dask: str | None = None,
    components: tuple[str, ...] = COMPONENTS,
) -> Statistics:
    """Statistics of components, from the cache where it has them."""
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.cache import statistics

    return statistics(checkpoint, calibration_samples(samples), console, components=components, dask=dask)


def _sensitivity(checkpoint: Checkpoint, recipe: Recipe, console: Console) -> Sensitivity:
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.cache import sensitivity

    return sensitivity(checkpoint, calibration_samples(recipe.calibration.samples), console)


def _hessians(checkpoint: Checkpoint, recipe: Recipe, folder: Path, console: Console) -> Hessians:
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.hessians import SAMPLES
    from vlmexport.calibrate.hessians import measure as measure_hessians
    from vlmexport.model import load

    samples, weight = calibration_samples(recipe.calibration.samples)[:SAMPLES], recipe.calibration.image_weight
    with console.progress("measuring for GPTQ", len(samples) + checkpoint.spec.language.num_layers) as advance:
        return measure_hessians(load(checkpoint), checkpoint.prompts, samples, folder, weight, advance)


def _int8(
    checkpoint: Checkpoint, recipe: Recipe, statistics: Statistics, graph: Callable[[str], ir.Model], console: Console
) -> Int8:
    """Decisions about each part; layers that int8 does not serve are sent back, as far as the recipe measures them."""
    from vlmexport.model import plugins
    from vlmexport.quantize.int8 import Int8

    int8 = Int8(recipe.onnx, statistics, plugins.float_layers(checkpoint.spec.vision))
    fallback = _fallback(checkpoint, recipe, console)
    for part in recipe.int8_components:
        int8.decisions[part] = decisions = int8.decide(graph(part))
        if fallback is not None and part != "projector":  # the tower's graph holds it too
            int8.send_back(fallback(decisions))
    return int8


def _fallback(checkpoint: Checkpoint, recipe: Recipe, console: Console) -> Fallback | None:
    """None also where the decoder is one that calibration does not hold in memory either."""
    from vlmexport.calibrate import calibration_samples
    from vlmexport.calibrate.collect import LARGE
    from vlmexport.fallback.search import Fallback
    from vlmexport.model import load

    components = recipe.int8_components
    if recipe.onnx.fallback != "measured" or sum(map(checkpoint.parameters, components)) >= LARGE:
        return None
    needed = COMPONENTS if "language" in components else COMPONENTS[:2]
    samples = calibration_samples(recipe.calibration.samples)
    return Fallback(
        lambda: (load(checkpoint, components=needed, resident=True), checkpoint.prompts),
        samples, recipe.gates, console,
    )  # fmt: skip
