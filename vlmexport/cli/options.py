"""Options and arguments that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


class Client(StrEnum):
    """A client whose pixels a check can measure."""

    node = "node"


Model = Annotated[str, typer.Argument(help="A checkpoint folder, a Hub id, or `demo`.", show_default=False)]
Tower = Annotated[
    str | None,
    typer.Option("--vision-tower", help="CLIP folder, where the checkpoint has no tower.", show_default=False),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the bundle.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
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
Vision = Annotated[
    str | None,
    typer.Option(help="mmproj, onnx (a hybrid, int8), or the ONNX recipe to take it from.", show_default=False),
]
MaxViews = Annotated[
    int | None,
    typer.Option(help="Views of a picture, at most: tiles and the whole.", min=1, show_default=False),
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
