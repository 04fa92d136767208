"""What the graphs of a bundle are called: clients look for them there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from vlmexport.artifact.bundle.halves import Role
from vlmexport.recipe import Onnx

_FOLDERS: dict[Role, str] = {
    "vision_encoder": "onnx/", "embed_tokens": "onnx/", "decoder_model_merged": "onnx/", "projector": "components/",
    "embedding": "", "decoder": "",
}  # fmt: skip
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "int4": "_q4"}
_EXTERNAL = re.compile(r"(?:.*/)?([^/]+\.onnx)_data(?:_\d+)?")


def graph_path(name: Role, precision: str) -> str:
    """Where a graph lies in a bundle."""
    return f"{_FOLDERS[name]}{name}{_SUFFIXES[precision]}.onnx"


def precision_of(name: Role, settings: Onnx) -> str:
    """What a recipe makes of a graph."""
    if name in ("vision_encoder", "projector"):
        return settings.vision
    return settings.decoder if name in ("decoder_model_merged", "decoder") else "fp32"


def external_data(paths: Iterable[str]) -> dict[str, int]:
    """Name of a graph's file → number of its external data files, of those that have some among these."""
    found = Counter(match[1] for path in paths if (match := _EXTERNAL.fullmatch(path)))
    return dict(sorted(found.items()))
