"""Commands that take a model: what it is, what it would cost, what it becomes."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from vlmexport.cli.options import (
    Bits,
    BitsPerWeight,
    Dask,
    Decoder,
    Force,
    Imatrix,
    Json,
    MaxSize,
    MaxViews,
    Model,
    Output,
    Phones,
    Precision,
    Quiet,
    RecipeFile,
    Samples,
    Target,
    TensorTypes,
    Tower,
    Vision,
)
from vlmexport.console import Console


def inspect(model: Model, vision_tower: Tower = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Show the components and sizes of a checkpoint or of a bundle."""
    from vlmexport.report.inspection import describe

    console = Console(as_json, quiet)
    console.result(*describe(model, vision_tower, console))


def plan(
    model: Model,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Recipe to plan, all by default.", show_default=False)
    ] = None,
    kind: Annotated[list[str] | None, typer.Option("--type", help="GGUF type to plan.", show_default=False)] = None,
    bits: Bits = None,
    max_size: MaxSize = None,
    bpw: BitsPerWeight = None,
    tensor_type: TensorTypes = None,
    vision: Vision = None,
    imatrix: Imatrix = None,
    max_views: MaxViews = None,
    phone: Phones = None,
    vision_tower: Tower = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell the bytes, memory and times on phones of an export. Reads no weights."""
    from vlmexport.costs import choose_phones, estimate
    from vlmexport.flags import budget_flags
    from vlmexport.plan import choose
    from vlmexport.report.plan import table
    from vlmexport.source.locate import open_model

    console = Console(as_json, quiet)
    checkpoint = open_model(model, vision_tower, console)
    flags: dict[str, Any] = {"gguf.tensor_types": tensor_type, "gguf.imatrix": imatrix, "max_views": max_views}
    flags |= budget_flags(str(bits) if bits else kind[0] if kind else None, max_size, bpw)
    on, chosen = choose_phones(phone), choose(recipe or [], kind or [], bits, flags, vision)
    found = [estimate(checkpoint, recipe, on) for recipe in chosen]
    console.result(table(found), [costs.facts() for costs in found])


def compare(
    models: Annotated[list[str], typer.Argument(help="Checkpoint folders, Hub ids, or `demo`.", show_default=False)],
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe's name or TOML file.")] = "onnx-arm64-int4",
    phone: Annotated[str, typer.Option(help="Where times are estimated.")] = "snapdragon-888",
    plot: Annotated[
        Path | None, typer.Option(help="Write an SVG: size against estimated times.", show_default=False)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare what designs would cost before they are trained. Parameters, operations, bytes, times; no weights."""
    from vlmexport.costs import choose_phones, estimate
    from vlmexport.recipe import resolve
    from vlmexport.report import costs as report
    from vlmexport.source.locate import open_model

    console, chosen, on = Console(as_json, quiet), resolve(recipe), choose_phones([phone])
    found = [estimate(open_model(model, console=console), chosen, on) for model in models]
    if plot:
        plot.write_text(report.plot(found), encoding="utf-8")
    console.result(report.compare(found), [costs.facts() for costs in found])


def new(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint.", show_default=False)],
    vision: Annotated[
        str | None, typer.Option(help="Vision encoder: KIND or KIND:VARIANT.", show_default="clip:l14-336")
    ] = None,
    projector: Annotated[str | None, typer.Option(help="Projector.", show_default="ldpnetv2")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language model: KIND or KIND:VARIANT.", show_default="llama:tiny")
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            "--from", help="MODEL whose parts, with their weights, stand where none is named.", show_default=False
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels along one side, the encoder's own by default.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint of any design, which every command takes. Random, or with parts of a trained model."""
    from vlmexport.design import Design, create
    from vlmexport.report.inspection import describe

    console = Console(as_json, quiet)
    design = Design(vision, projector, language, image_size, seed, origin)
    create(design, output, force=force, console=console)
    console.result(*describe(str(output)))
    console.note(f"next: vlmexport plan {quote(str(output))}")


def onnx(
    model: Model,
    target: Annotated[Target, typer.Option(help="The machine it is for.")] = Target.x86,
    precision: Annotated[Precision, typer.Option(help="Precision of all components.")] = Precision.int8,
    decoder: Annotated[Decoder | None, typer.Option(help="Precision of the decoder.", show_default=False)] = None,
    max_views: MaxViews = None,
    vision_tower: Tower = None,
    output: Output = None,
    recipe: RecipeFile = None,
    samples: Samples = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to ONNX: each component traced, in static int8."""
    base = "onnx-fp32" if precision is Precision.fp32 else f"onnx-{target}"
    name = recipe or (f"{base}-{decoder}" if decoder in (Decoder.int4, Decoder.fp16) else base)
    flags: dict[str, Any] = {"onnx.decoder": decoder, "calibration.samples": samples, "max_views": max_views}
    if recipe is None and precision is Precision.fp32:
        flags["target"] = target
    _export(model, name, flags, vision_tower, dask, output, force, Console(as_json, quiet))


def gguf(
    model: Model,
    bits: Bits = None,
    kind: Annotated[str | None, typer.Option("--type", help="A GGUF type, e.g. q4_k_m.", show_default=False)] = None,
    max_size: MaxSize = None,
    bpw: BitsPerWeight = None,
    tensor_type: TensorTypes = None,
    mmproj_type: Annotated[
        str | None, typer.Option(help="Type of the mmproj: f16, q8_0 or f32.", show_default=False)
    ] = None,
    vision: Vision = None,
    imatrix: Imatrix = None,
    max_views: MaxViews = None,
    vision_tower: Tower = None,
    output: Output = None,
    recipe: RecipeFile = None,
    samples: Samples = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to GGUF for llama.cpp: quantized decoder and mmproj. Its importance matrix has seen images."""
    from vlmexport.flags import budget_flags, gguf_recipe, gguf_type, vision_flags

    flags: dict[str, Any] = {
        "gguf.tensor_types": tensor_type, "gguf.imatrix": imatrix, "calibration.samples": samples,
        "max_views": max_views,
    }  # fmt: skip
    wanted = gguf_type(kind, bits)
    name, chosen = (recipe, {"gguf.type": wanted}) if recipe else gguf_recipe(wanted)
    flags |= chosen | budget_flags(wanted, max_size, bpw)
    flags |= vision_flags(vision, mmproj_type, name, str(flags.get("name") or name))
    _export(model, name, flags, vision_tower, dask, output, force, Console(as_json, quiet))


def _export(
    model: str,
    name: str,
    flags: dict[str, Any],
    vision_tower: str | None,
    dask: str | None,
    output: Path | None,
    force: bool,
    console: Console,
) -> None:
    from vlmexport.artifact.bundle.manifest import read_manifest
    from vlmexport.extras import require
    from vlmexport.recipe import resolve
    from vlmexport.report.bundle import facts, table

    chosen = resolve(name, flags)
    if flags["max_views"] is not None:
        chosen = chosen.model_copy(update={"name": f"{chosen.name}-{flags['max_views']}views"})
    require("export", *(("gguf",) if chosen.format == "gguf" else ()))
    from vlmexport.pipeline import export

    folder = export(model, chosen, output, vision_tower=vision_tower, force=force, console=console, dask=dask)
    shown = facts(folder, read_manifest(folder))
    console.result(table(shown), shown)
    console.note(f"next: vlmexport check {quote(str(folder))}")


def calibrate(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the statistics.")] = Path(
        "statistics.safetensors"
    ),
    samples: Samples = None,
    vision_tower: Tower = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Collect the calibration statistics alone."""
    from vlmexport.pipeline import calibrate_to

    console = Console(as_json, quiet)
    found = calibrate_to(model, output, samples, vision_tower=vision_tower, force=force, console=console, dask=dask)
    views = f", {found['tiles']} tiles and {found['whole']} whole pictures" if found["tiles"] else ""
    console.result(f"{output}: {found['layers']} layers from {found['samples']} samples{views}", found)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one.", show_default=False)] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the recipes, or show one."""
    from vlmexport.recipe import resolve, shipped

    names = [name] if name else shipped()
    found = {key: resolve(key).model_dump(mode="json") for key in names}
    human = "\n".join(names) if name is None else resolve(name).model_dump_json(indent=2)
    Console(as_json, quiet).result(human, found)
