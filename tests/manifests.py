"""Manifests of bundles that have no files."""

from __future__ import annotations

from typing import Any

from tests.checkpoints import tiny_spec
from vlmexport.artifact.bundle.halves import LLAMA_CPP, ONNXRUNTIME, DecodingHalf, SeeingHalf
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.source import Model, Source
from vlmexport.recipe import Recipe

ENGINES = {
    "onnx": (ONNXRUNTIME, ONNXRUNTIME), "gguf": (LLAMA_CPP, LLAMA_CPP), "hybrid": (ONNXRUNTIME, LLAMA_CPP)
}  # fmt: skip


def manifest(kind: str = "onnx", source: Source | None = None, **fields: Any) -> Manifest:
    """What ``fields`` leave out is empty, or of the tiny model."""
    seeing, decoding = ENGINES[kind]
    given: dict[str, Any] = {
        "source": source or source_named("tiny"), "recipe": Recipe(), "tools": {},
        "seeing": SeeingHalf(engine=seeing, precision="fp32"),
        "decoding": DecodingHalf(engine=decoding, precision="fp32"),
    }  # fmt: skip
    return Manifest(**given | fields)


def source_named(name: str, **fields: Any) -> Source:
    """A checkpoint of this name, with the tiny model's sizes."""
    given = {"path": name, "layout": "mobilevlm", "spec": Model.of(tiny_spec()), "weights": {}}
    return Source(name=name, **given | fields)
