"""The command line: parse → call one function → render. Heavy imports happen inside the commands."""

from __future__ import annotations

import logging
import os
import sys
from itertools import takewhile
from typing import Annotated

import typer

from vlmexport.cli import bundles, kept, models
from vlmexport.console import Console
from vlmexport.environment import unknown_variables
from vlmexport.errors import InternalError, Interrupted, UsageError, VlmExportError
from vlmexport.extras import missing
from vlmexport.text import is_utf8

_NotParsed: type[BaseException] = typer.BadParameter.__mro__[2]
"""What Typer raises where arguments do not fit: click's ClickException, or that of its own copy of click."""

app = typer.Typer(
    name="vlmexport",
    help="Export a vision-language model to ONNX int8 and GGUF 4-bit, and prove that it arrived intact.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    models.inspect, models.plan, models.compare, models.new, models.onnx, models.gguf, models.calibrate, bundles.check,
    bundles.run, bundles.serve, bundles.prepare, bundles.bench, models.recipes, kept.cache,
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
    flags = set(takewhile(lambda argument: argument != "--", arguments))
    console = Console(as_json="--json" in flags, quiet=bool(flags & {"-q", "--quiet"}))
    Console.answered = False
    handler = _Notes(console)
    logging.getLogger("vlmexport").addHandler(handler)
    try:
        for warning in unknown_variables():
            console.warn(warning)
        if {"VLMEXPORT_CACHE_DAYS", "VLMEXPORT_CACHE_SIZE"} & os.environ.keys():
            from vlmexport.cache import limits

            limits()  # here, and not after an hour of calibration
        _refuse_other_encodings(arguments)
        sys.exit(_run(arguments or ["--help"], console))
    except Exception as error:
        if debug:
            raise
        told = _told(error)
        console.error(told)
        sys.exit(told.exit_code)
    finally:
        logging.getLogger("vlmexport").removeHandler(handler)


class _Notes(logging.Handler):
    """What our modules warn of, as a note on the console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self._console.note(record.getMessage())


def _run(arguments: list[str], console: Console) -> int:
    """The exit code of a command.

    Raises:
        UsageError: the arguments are none of a command.
    """
    try:
        code = app(arguments, prog_name="vlmexport", standalone_mode=False)
    except _NotParsed as error:
        command = context.command_path if (context := getattr(error, "ctx", None)) else "vlmexport"
        message = str(getattr(error, "format_message", error.__str__)()).replace("Value error, ", "")
        raise UsageError(message.strip().removesuffix("."), f"see `{command} --help`") from error
    except SystemExit as error:  # Typer and rich turn a pipe that broke into exit code 1, without a word
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    if code == Interrupted.exit_code:  # Typer turns Ctrl-C into one, without a word
        if console.as_json:
            console.error(Interrupted("interrupted", "nothing was left half-written"))
        else:
            console.note("interrupted; nothing was left half-written")
    return code if isinstance(code, int) else 0


def _refuse_other_encodings(arguments: list[str]) -> None:
    """Names and questions go into JSON, XML and tokenizers, which take text alone."""
    for argument in arguments:
        if not is_utf8(argument):
            raise UsageError(f"{argument!a} is no UTF-8", "pass names, paths and questions in UTF-8")


def _told(error: Exception) -> VlmExportError:
    """What a user reads of an error."""
    if isinstance(error, VlmExportError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return missing(error.name)
    if isinstance(error, BrokenPipeError):
        return UsageError(
            "what reads the output, or a process of the command, ended early", "run it again, read to its end"
        )
    if isinstance(error, OSError):
        return UsageError(str(error) or type(error).__name__, "check the path, its permissions and the free space")
    what = f"internal error ({type(error).__name__}: {error})"
    return InternalError(what, "please report it, with the output of --debug")
