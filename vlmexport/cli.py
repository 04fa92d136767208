"""The command line: parse → call one function → render. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmexport.console import Console
from vlmexport.errors import UsageError, VlmExportError

INTERNAL_ERROR = 70
INTERRUPTED = 130

app = typer.Typer(
    name="vlmexport",
    help="Export a vision-language model to ONNX int8 and GGUF 4-bit, and prove that it arrived intact.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Target(StrEnum):
    """What an ONNX bundle is for."""

    x86 = "x86"
    arm64 = "arm64"
    web = "web"


class Precision(StrEnum):
    """Precision of an ONNX bundle."""

    int8 = "int8"
    fp32 = "fp32"


class Decoder(StrEnum):
    """Precision of its decoder."""

    int8 = "int8"
    int4 = "int4"
    fp16 = "fp16"
    fp32 = "fp32"


class Machine(StrEnum):
    """A machine whose kernels a check can run on."""

    arm64 = "arm64"


Model = Annotated[str, typer.Argument(help="A checkpoint folder, a Hub id, or `demo`.", show_default=False)]
Tower = Annotated[
    str | None,
    typer.Option("--vision-tower", help="CLIP folder, where the checkpoint has no tower.", show_default=False),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the bundle.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]
RecipeFile = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or TOML file.", show_default=False)]
Bits = Annotated[int | None, typer.Option(help="Bits a weight: 2, 3, 4, 5, 6, 8, 16 or 32.", show_default=False)]
MaxSize = Annotated[
    str | None, typer.Option(help="Budget: size of all GGUF files that run, e.g. 850MB.", show_default=False)
]
BitsPerWeight = Annotated[
    float | None, typer.Option(help="Budget: bits per weight of the language model.", show_default=False)
]
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", help="REGEX=TYPE, repeatable: the first that matches a name.", show_default=False),
]
Imatrix = Annotated[
    str | None, typer.Option(help="auto (calibration set), none, or llama.cpp's imatrix file.", show_default=False)
]
Samples = Annotated[int | None, typer.Option("--samples", help="Samples to use.", min=1, show_default=False)]
Phones = Annotated[
    list[str] | None, typer.Option("--phone", help="Estimate times on this one, all by default.", show_default=False)
]
Dask = Annotated[
    str | None, typer.Option("--dask", help="Spread over Dask: a scheduler, or local:N.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(version("vlmexport"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Export a vision-language model to the phone, and prove that it arrived intact."""


@app.command()
def inspect(model: Model, vision_tower: Tower = None, as_json: Json = False) -> None:
    """Show the components and sizes of a checkpoint or of a bundle."""
    from vlmexport.report.inspection import describe

    Console(as_json).result(*describe(model, vision_tower))


@app.command()
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
    imatrix: Imatrix = None,
    phone: Phones = None,
    vision_tower: Tower = None,
    as_json: Json = False,
) -> None:
    """Say what exports would write and take: bytes, memory, operations, times on phones. Reads no weights."""
    from vlmexport.checkpoint.locate import open_model
    from vlmexport.costs import choose_phones, estimate
    from vlmexport.plan import choose
    from vlmexport.recipe import budget_flags
    from vlmexport.report.plan import table

    checkpoint = open_model(model, vision_tower)
    flags: dict[str, Any] = {"gguf.tensor_types": tensor_type, "gguf.imatrix": imatrix}
    flags |= budget_flags(str(bits) if bits else kind[0] if kind else None, max_size, bpw)
    on, chosen = choose_phones(phone), choose(recipe or [], kind or [], bits, flags)
    found = [estimate(checkpoint, recipe, on) for recipe in chosen]
    Console(as_json).result(table(found), [costs.facts() for costs in found])


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Checkpoint folders, Hub ids, or `demo`.", show_default=False)],
    recipe: Annotated[str, typer.Option("--recipe", help="A recipe's name or TOML file.")] = "onnx-arm64-int4",
    phone: Annotated[str, typer.Option(help="Where times are estimated.")] = "snapdragon-888",
    plot: Annotated[
        Path | None, typer.Option(help="Write an SVG: size against estimated times.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Put what designs would cost beside each other: parameters, operations, bytes, times. Reads no weights."""
    from vlmexport.checkpoint.locate import open_model
    from vlmexport.costs import choose_phones, estimate
    from vlmexport.recipe import resolve
    from vlmexport.report import costs as report

    chosen, on = resolve(recipe), choose_phones([phone])
    found = [estimate(open_model(model), chosen, on) for model in models]
    if plot:
        plot.write_text(report.plot(found), encoding="utf-8")
    Console(as_json).result(report.compare(found), [costs.facts() for costs in found])


@app.command()
def new(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the checkpoint.", show_default=False)],
    vision: Annotated[str, typer.Option(help="Vision encoder: KIND or KIND:VARIANT.")] = "clip:l14-336",
    projector: Annotated[str, typer.Option(help="Projector.")] = "ldpnetv2",
    language: Annotated[str, typer.Option(help="Language model: KIND or KIND:VARIANT.")] = "llama:tiny",
    image_size: Annotated[
        int | None, typer.Option(help="Pixels along one side, the encoder's own by default.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint of any design, with random weights, that every other command takes."""
    from vlmexport.design import Design, create
    from vlmexport.report.inspection import describe

    console = Console(as_json, quiet)
    create(Design(vision, projector, language, image_size, seed), output, force=force, console=console)
    console.result(*describe(str(output)))
    console.note(f"next: vlmexport plan {output}")


@app.command()
def onnx(
    model: Model,
    target: Annotated[Target, typer.Option(help="The machine it is for.")] = Target.x86,
    precision: Annotated[Precision, typer.Option(help="Precision of all components.")] = Precision.int8,
    decoder: Annotated[Decoder | None, typer.Option(help="Precision of the decoder.", show_default=False)] = None,
    vision_tower: Tower = None,
    output: Output = None,
    recipe: RecipeFile = None,
    samples: Samples = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to ONNX: each component traced, static int8 from the calibration set."""
    base = "onnx-fp32" if precision is Precision.fp32 else f"onnx-{target}"
    name = recipe or (f"{base}-{decoder}" if decoder in (Decoder.int4, Decoder.fp16) else base)
    flags: dict[str, Any] = {"onnx.decoder": decoder, "calibration.samples": samples}
    if recipe is None and precision is Precision.fp32:
        flags["target"] = target
    _export(model, name, flags, vision_tower, dask, output, force, Console(as_json, quiet))


@app.command()
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
    vision: Annotated[
        str | None,
        typer.Option(help="mmproj, onnx (a hybrid, int8), or the ONNX recipe to take it from.", show_default=False),
    ] = None,
    imatrix: Imatrix = None,
    vision_tower: Tower = None,
    output: Output = None,
    recipe: RecipeFile = None,
    samples: Samples = None,
    dask: Dask = None,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to GGUF for llama.cpp: quantized decoder, importance matrix from images, mmproj."""
    from vlmexport.recipe import budget_flags, gguf_recipe, gguf_type, vision_flags

    flags: dict[str, Any] = {
        "gguf.tensor_types": tensor_type, "gguf.imatrix": imatrix, "calibration.samples": samples
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
    from vlmexport.artifact.bundle import read_manifest
    from vlmexport.pipeline import export
    from vlmexport.recipe import resolve
    from vlmexport.report.bundle import facts, table

    chosen = resolve(name, flags)
    folder = export(model, chosen, output, vision_tower=vision_tower, force=force, console=console, dask=dask)
    shown = facts(folder, read_manifest(folder))
    console.result(table(shown), shown)
    console.note(f"next: vlmexport check {folder}")


@app.command()
def calibrate(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the statistics.")] = Path(
        "statistics.safetensors"
    ),
    samples: Samples = None,
    vision_tower: Tower = None,
    dask: Dask = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Collect the calibration statistics alone."""
    from vlmexport.pipeline import calibrate_to

    console = Console(as_json, quiet)
    found = calibrate_to(model, output, samples, vision_tower=vision_tower, console=console, dask=dask)
    console.result(f"{output}: {found['layers']} layers from {found['samples']} samples", found)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    reference: Annotated[str | None, typer.Option(help="The float model, where it moved.", show_default=False)] = None,
    vision_tower: Tower = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of images, questions (JSON Lines), LLaVA's JSON or COCO's.", show_default=False),
    ] = None,
    samples: Samples = None,
    strict_stock: Annotated[
        bool, typer.Option("--strict-stock", help="Gate on what stock llama.cpp computes, too.")
    ] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="An earlier parity.json: fail on what got worse.", show_default=False)
    ] = None,
    slack: Annotated[
        float | None,
        typer.Option(help="Share of its losses that may be added, 0.1 by default.", min=0.0, show_default=False),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write the float model's values to a file.", show_default=False)
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="Take them from there.", show_default=False)] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Name the first layer that diverges.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.", show_default=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report to look at.", show_default=False)] = None,
    on: Annotated[
        Machine | None,
        typer.Option(help="Run an ONNX bundle on that machine's kernels, too (`make arm64`).", show_default=False),
    ] = None,
    dask: Dask = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a bundle with its float model, stage by stage; exit 1 when a gate fails."""
    from vlmexport.parity.check import check as run_check
    from vlmexport.report.annotations import workflow_commands
    from vlmexport.report.destinations import Destinations, step_summary
    from vlmexport.report.terminal import parity

    console, destinations = Console(as_json, quiet), Destinations(junit, markdown, html, step_summary())
    with destinations.told_errors(bundle.resolve().name):
        result = run_check(
            bundle,
            reference=reference,
            vision_tower=vision_tower,
            samples=samples,
            data=data,
            console=console,
            dask=dask,
            strict_stock=strict_stock,
            record=record,
            replay=replay,
            baseline=baseline,
            slack=slack,
            on=on.value if on else None,
            bisect=bisect,
        )
    destinations.write(result, bundle)
    console.stream(workflow_commands(result))
    console.result(parity(result), result.model_dump(mode="json"))
    if not result.passed and not bisect and replay is None:
        console.note(f"next: vlmexport check {bundle} --bisect names the layer")
    raise typer.Exit(0 if result.passed else 1)


@app.command()
def run(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or a model.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    image: Annotated[Path, typer.Option("--image", "-i", help="The picture.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    vision_tower: Tower = None,
    as_json: Json = False,
) -> None:
    """Ask a bundle, or a float model, about a picture."""
    from vlmexport.runtime.ask import ask

    console = Console(as_json)
    pieces = []
    for piece in ask(bundle, image, question, max_new_tokens, vision_tower):
        console.stream(piece)
        pieces.append(piece)
    answer = "".join(pieces)
    console.result("", {"answer": answer, "question": question, "image": str(image), "bundle": bundle})


@app.command()
def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Folders of bundles.", show_default=False)],
    image: Annotated[
        Path | None, typer.Option("--image", "-i", help="The picture; a drawn one by default.", show_default=False)
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What to ask: its length counts, not its sense.", show_default=False)
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="Length of an answer, in tokens.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Fresh processes a bundle, of four answers each.", min=1)] = 3,
    plot: Annotated[
        Path | None, typer.Option(help="Write an SVG: size against parity and speed.", show_default=False)
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure bundles side by side: image, first token, tokens a second, memory, size, energy."""
    from vlmexport.bench import bench as measure
    from vlmexport.model.pixels import read_image
    from vlmexport.report import bench as report

    console = Console(as_json, quiet)
    picture = read_image(image) if image else None
    found = measure(bundles, image=picture, question=question, new_tokens=new_tokens, rounds=rounds, console=console)
    if plot:
        plot.write_text(report.plot(found), encoding="utf-8")
        for name in report.unchecked(found):
            console.note(f"{name} is not in the plot of parity: `vlmexport check` it first")
    console.result(report.table(found), [one.facts() for one in found])


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="An ONNX bundle's folder.", show_default=False)],
    port: Annotated[
        int | None, typer.Option(help="Port; the first free one from 8000 on.", min=1, max=65535, show_default=False)
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True,
    transformers: Annotated[
        Path | None,
        typer.Option(help="Folder with transformers.js in node_modules; fetched once by default.", show_default=False),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a bundle in the browser, which runs it: pictures, questions, answers as they grow."""
    from vlmexport.serve.server import open_server

    console = Console(as_json, quiet)
    with open_server(bundle, port, transformers, console) as server:
        console.result(f"{bundle} is at {server.url} until Ctrl-C", {"bundle": str(bundle), "url": server.url})
        server.run(browser)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """List the recipes, or show one."""
    from vlmexport.recipe import resolve, shipped

    names = [name] if name else shipped()
    found = {key: resolve(key).model_dump(mode="json") for key in names}
    human = "\n".join(names) if name is None else resolve(name).model_dump_json(indent=2)
    Console(as_json).result(human, found)


def main() -> None:
    """The entry point. ``--debug`` anywhere (or ``VLMEXPORT_DEBUG=1``) shows tracebacks."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("VLMEXPORT_DEBUG") == "1"
    console = Console(as_json="--json" in arguments)
    try:
        app(arguments)
    except VlmExportError as error:
        if debug:
            raise
        console.error(error)
        sys.exit(error.exit_code)
    except SystemExit as end:  # Typer turns Ctrl-C into one, without a word
        if end.code == INTERRUPTED:
            console.note("interrupted; nothing was left half-written")
        raise
    except OSError as error:
        if debug:
            raise
        console.error(UsageError(str(error), "check the path, its permissions and the free space"))
        sys.exit(UsageError.exit_code)
    except Exception as error:
        if debug:
            raise
        console.error(
            VlmExportError(
                f"internal error ({type(error).__name__}: {error})", "please report it, with the output of --debug"
            )
        )
        sys.exit(INTERNAL_ERROR)
