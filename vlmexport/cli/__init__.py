"""The command line: parse → call one function → render. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vlmexport.cli import bundles, models
from vlmexport.console import Console
from vlmexport.errors import MissingDependency, UsageError, VlmExportError
from vlmexport.extras import missing

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
for command in (
    models.inspect, models.plan, models.compare, models.new, models.onnx, models.gguf, models.calibrate, bundles.check,
    bundles.run, bundles.serve, bundles.bench, models.recipes,
):  # fmt: skip
    app.command()(command)


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
    except ModuleNotFoundError as error:
        if debug:
            raise
        console.error(missing(error.name))
        sys.exit(MissingDependency.exit_code)
    except Exception as error:
        if debug:
            raise
        console.error(
            VlmExportError(
                f"internal error ({type(error).__name__}: {error})", "please report it, with the output of --debug"
            )
        )
        sys.exit(INTERNAL_ERROR)
