"""Traced graphs without their weights, kept between exports: tracing is most of what a second export would compute.

A sketch's graph follows from the sizes of the model, the code that traces it and the versions of what that code calls.
Nothing of a checkpoint's weights is in it, so checkpoints of one design, targets and precisions share it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnx_ir as ir

from vlmexport.artifact.onnx.passes.clean import MODULE
from vlmexport.cache import cache_folder, keep, used
from vlmexport.checkpoint.spec import Spec
from vlmexport.files import PACKAGE

_TOOLS = ("torch", "transformers", "timm", "onnxscript", "onnx-ir", "onnx")
_FACTS = "vlmexport"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Part:
    """A traced graph, its parameters still without values.

    ``transposed`` has the parameters by their path in ``model.VLM``, and whether the graph holds them transposed.
    """

    name: str
    model: ir.Model
    transposed: dict[str, bool]


class Traces:
    """Those of one design in the user's cache; designs with the same decoder share its graph.

    Args:
        spec: of the sketch.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec, self._folder = spec, cache_folder() / "traces"
        self._facts = [_code(), *map(_version, _TOOLS)]

    def find(self, part: str) -> Part | None:
        """The graph of ``vision``, ``projector`` or ``language``; None where there is none, or it is damaged."""
        try:
            held = self._path(part).read_bytes()
        except OSError:
            return None
        used(self._path(part))
        digest, packed = held[:_DIGEST], held[_DIGEST:]
        return unpack(packed) if hashlib.sha256(packed).digest() == digest else None

    def keep(self, part: str, packed: bytes) -> None:
        """Write what ``pack`` made; a reader sees all of it or nothing."""
        keep(self._path(part), lambda path: path.write_bytes(hashlib.sha256(packed).digest() + packed))

    def _path(self, part: str) -> Path:
        spec = self._spec
        own = (spec.language,) if part == "language" else (spec.vision, spec.projector, spec.language.hidden_size)
        facts = json.dumps([part, repr(own), *self._facts])
        return self._folder / hashlib.sha256(facts.encode()).hexdigest()[:32]


def pack(part: Part) -> bytes:
    """As an ONNX file in which parameters are inputs. The graph's parameters lose their values."""
    graph = part.model.graph
    for name in part.transposed:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
    for node in graph:
        node.metadata_props[MODULE] = node.meta.get(MODULE, "")
    facts = {"name": part.name, "transposed": part.transposed}
    part.model.metadata_props[_FACTS] = json.dumps(facts)
    return bytes(ir.to_proto(part.model).SerializeToString())


def unpack(packed: bytes) -> Part:
    """What ``pack`` packed; parameters are initializers without a value."""
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(packed))
    facts, graph = json.loads(model.metadata_props.pop(_FACTS)), model.graph
    for node in graph:
        node.meta[MODULE] = node.metadata_props.pop(MODULE)
    for value in list(graph.inputs):
        if value.name in facts["transposed"]:
            graph.inputs.remove(value)
            graph.initializers.add(value)
    return Part(model=model, **facts)


@cache
def _code() -> str:
    """Hash of this package's own modules."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
