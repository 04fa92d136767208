"""The manifest of before: one ``kind``, untyped details, files by labels for people. It is read, never written."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from vlmexport.artifact.bundle.halves import LABELS, LLAMA_CPP, ONNXRUNTIME, Budget, Role
from vlmexport.artifact.bundle.inside import InnerPath
from vlmexport.artifact.bundle.models import Part
from vlmexport.artifact.bundle.source import Model
from vlmexport.checkpoint.spec import ImageProcessorSpec

_SEEING: tuple[Role, ...] = ("vision_encoder", "projector")
_DECODING: tuple[Role, ...] = ("embed_tokens", "decoder_model_merged")
_NOT_RUN: tuple[Role, ...] = ("embedding", "decoder")
_COLOURS = ("image_mean", "image_std")
_ENGINES = {
    "onnx": (ONNXRUNTIME, ONNXRUNTIME), "gguf": (LLAMA_CPP, LLAMA_CPP), "hybrid": (ONNXRUNTIME, LLAMA_CPP)
}  # fmt: skip


class _File(Part):
    path: InnerPath
    bytes: int
    sha256: str
    component: str | None = None


class _Source(Part):
    name: str
    path: str
    layout: str
    spec: dict[str, Any]
    weights: dict[str, str]
    vision_tower: str | None = None


class _Details(Part):
    graphs: dict[Role, InnerPath] = Field(default_factory=dict)
    report: dict[Role, dict[str, Any]] = Field(default_factory=dict)
    features: str | None = None
    opset: int | None = None
    image_token_id: int | None = None
    tokenizer: InnerPath | None = None
    language: InnerPath | None = None
    mmproj: InnerPath | None = None
    types: dict[str, str] = Field(default_factory=dict)
    budget: Budget | None = None


class _Manifest(Part):
    schema_version: Literal[1] = 1
    kind: Literal["onnx", "gguf", "hybrid"]
    source: _Source
    recipe: dict[str, Any]
    tools: dict[str, str]
    calibration: dict[str, Any] | None = None
    files: list[_File] = Field(default_factory=list)
    tensors: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    details: _Details = Field(default_factory=_Details)
    parity: dict[str, Any] | None = None


def upgraded(raw: bytes) -> dict[str, Any]:
    """The document of version 2 that says the same.

    Raises:
        ValueError: it is none of version 1.
    """
    old = _Manifest.model_validate_json(raw)
    seeing, decoding = _ENGINES[old.kind]
    return {
        "source": _source(old.source),
        "recipe": _recipe(old.recipe),
        "tools": old.tools,
        "calibration": old.calibration,
        "seeing": _seeing(old, seeing),
        "decoding": _decoding(old, decoding),
        "files": [_file(file, seeing) for file in old.files],
        "tensors": old.tensors,
        "notes": old.notes,
        "parity": _parity(old.parity) if old.parity else None,
    }


def _recipe(old: dict[str, Any]) -> dict[str, Any]:
    """``simplify`` said whether onnxsim ran on traced graphs."""
    settings = old.get("onnx")
    if not isinstance(settings, dict):
        return old
    return old | {"onnx": {key: value for key, value in settings.items() if key != "simplify"}}


def _source(old: _Source) -> dict[str, Any]:
    """A model was told by all fields of its Spec, of which a runtime needs a few."""
    spec = {"max_images": 1} | _apart(old.spec)
    if not spec.get("stop_token_ids") and "eos_token_id" in spec:
        spec["stop_token_ids"] = [spec["eos_token_id"]]
    configuration = {name: value for name, value in spec.items() if name not in ("name", "torch_dtype")}
    return old.model_dump() | {"spec": _picked(Model, spec), "configuration": configuration}


def _apart(spec: dict[str, Any]) -> dict[str, Any]:
    """How a picture becomes pixels was part of the vision encoder: mean, deviation, and whether pictures are padded."""
    vision = spec.get("vision")
    if "image_processor" in spec or not isinstance(vision, dict) or "image_size" not in vision:
        return spec
    kept = {key: value for key, value in vision.items() if key not in (*_COLOURS, "aspect_ratio")}
    pads = vision.get("aspect_ratio", "pad") == "pad"
    colours = {key: vision[key] for key in _COLOURS if key in vision}
    pixels = ImageProcessorSpec.square(vision["image_size"], pads, **colours)
    return spec | {"vision": kept, "image_processor": asdict(pixels)}


def _picked(model: type[BaseModel], old: dict[str, Any]) -> dict[str, Any]:
    """Of plain data the fields that a model has."""
    found = {name: old[name] for name in model.model_fields if name in old}
    for name, value in found.items():
        kind = model.model_fields[name].annotation
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
            found[name] = _picked(kind, value)
    return found


def _seeing(old: _Manifest, engine: str) -> dict[str, Any]:
    details = old.details
    files: dict[Role, str] = {role: path for role, path in details.graphs.items() if role in _SEEING}
    if details.mmproj is not None:
        files["mmproj"] = details.mmproj
    return {
        "engine": engine,
        "precision": details.types.get("mmproj") or _precision(old, "vision"),
        "files": files,
        "outputs": {} if details.features is None else {"features": details.features},
        **_graphs(old, _SEEING),
    }


def _decoding(old: _Manifest, engine: str) -> dict[str, Any]:
    details = old.details
    files: dict[Role, str] = {role: path for role, path in details.graphs.items() if role in _DECODING}
    more: dict[Role, str | None] = {"language": details.language, "tokenizer": details.tokenizer}
    return {
        "engine": engine,
        "precision": details.types.get("language") or _precision(old, "decoder"),
        "files": files | {role: path for role, path in more.items() if path is not None},
        "image_token_id": details.image_token_id,
        "budget": details.budget,
        **_graphs(old, _DECODING + _NOT_RUN),
    }


def _graphs(old: _Manifest, roles: tuple[Role, ...]) -> dict[str, Any]:
    found = {role: report for role, report in old.details.report.items() if role in roles}
    reports = {role: {key: value for key, value in one.items() if key != "onnxsim"} for role, one in found.items()}
    return {"opset": old.details.opset if reports else None, "reports": reports}


def _precision(old: _Manifest, part: str) -> str:
    """Of an ONNX half, as the recipe says."""
    settings = old.recipe.get("onnx")
    return str(settings.get(part, "")) if isinstance(settings, dict) else ""


def _file(old: _File, seeing: str) -> dict[str, Any]:
    """Vision encoder and mmproj had one label."""
    roles = {label: role for role, label in LABELS.items() if seeing == LLAMA_CPP or role != "mmproj"}
    return {"path": old.path, "bytes": old.bytes, "sha256": old.sha256, "role": roles.get(old.component or "")}


def _parity(old: dict[str, Any]) -> dict[str, Any]:
    """A measure that is no number was written as nothing."""
    known = {key: value for key, value in old.items() if value is not None}
    return {key: _parity(value) if isinstance(value, dict) else value for key, value in known.items()}
