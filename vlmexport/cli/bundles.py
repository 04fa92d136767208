"""Commands that take a bundle: compare it, ask it, measure it."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from vlmexport.cli.options import (
    Client,
    Dask,
    Force,
    Json,
    Machine,
    Quiet,
    Samples,
    Tower,
)
from vlmexport.console import Console


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
    client: Annotated[
        Client | None,
        typer.Option(help="Measure the pixels of transformers.js under Node, too.", show_default=False),
    ] = None,
    dask: Dask = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a bundle with its float model, stage by stage. The exit code is 1 when a gate fails."""
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
            client=client.value if client else None,
            bisect=bisect,
            memory=html is not None,
        )
    destinations.write(result, bundle)
    console.stream(workflow_commands(result))
    console.result(parity(result), result.model_dump(mode="json"))
    if not result.passed and result.broken_stage != "pixels" and not bisect and replay is None:
        console.note(f"next: vlmexport check {quote(str(bundle))} --bisect names the layer")
    raise typer.Exit(0 if result.passed else 1)


def run(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, or a model.", show_default=False)],
    question: Annotated[str, typer.Argument(help="What to ask.", show_default=False)],
    image: Annotated[
        list[Path],
        typer.Option("--image", "-i", help="The picture; again for each further one.", show_default=False),
    ],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 256,
    vision_tower: Tower = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a bundle, or a float model, about a picture, or about several."""
    from vlmexport.runtime.ask import ask

    console = Console(as_json, quiet)
    pieces = []
    for piece in ask(bundle, image, question, max_new_tokens, vision_tower, console):
        console.stream(piece)
        pieces.append(piece)
    answer = "".join(pieces)
    console.result(
        "", {"answer": answer, "question": question, "images": [str(one) for one in image], "bundle": bundle}
    )


def prepare(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    pictures: Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", show_default=False)],
    arrays: Annotated[
        bool, typer.Option("--arrays", help="Write what the vision graph is given (.npz), in place of pictures.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make pictures ready for other clients: upright, and resized and padded, or cut out, as the bundle's model has it.

    Clients resize pictures in ways of their own, and show the model other pixels. A PNG from here has the size that
    they resize to, so llama.cpp, transformers.js and onnxruntime-genai take its pixels as they are. For plain
    ONNX Runtime, --arrays writes the inputs of the vision graph by name: `run(None, dict(numpy.load(FILE)))`.
    """
    from vlmexport.prepare import prepare as write

    console, found = Console(as_json, quiet), []
    for one in write(bundle, pictures, output, arrays=arrays, force=force):
        found.append(one)
        if not one.kept:
            console.note(f"of {one.file} a client makes other views than of {one.source}: pass --arrays")
    lines = "\n".join(f"{one.source} -> {one.file}" for one in found)
    console.result(lines, [one.facts() for one in found])


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
    """Measure bundles side by side: time, memory, size, energy."""
    from vlmexport.bench import bench as measure
    from vlmexport.processing.images import read_image
    from vlmexport.report import bench as report

    console = Console(as_json, quiet)
    picture = read_image(image) if image else None
    found = measure(bundles, image=picture, question=question, new_tokens=new_tokens, rounds=rounds, console=console)
    if plot:
        plot.write_text(report.plot(found), encoding="utf-8")
        for name in report.unchecked(found):
            console.note(f"{name} is not in the plot of parity: `vlmexport check` it first")
    console.result(report.table(found), [one.facts() for one in found])


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
    """Ask a bundle in the browser, which runs it. Pictures, questions, and answers as they grow."""
    from vlmexport.serve.server import open_server

    console = Console(as_json, quiet)
    with open_server(bundle, port, transformers, console) as server:
        console.result(f"{bundle} is at {server.url} until Ctrl-C", {"bundle": str(bundle), "url": server.url})
        server.run(browser)
