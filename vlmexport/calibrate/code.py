"""Which code decides a measurement: a hash of those modules of this package, and the versions of what they call.

Modules are found by their imports. So an edit of a writer, of a report or of another model's projector leaves what was
measured in hours as it is, and an edit of the float model or of what collects the numbers does not.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlmexport import families
from vlmexport.checkpoint.spec import Spec
from vlmexport.files import PACKAGE
from vlmexport.model import plugins
from vlmexport.source.checkpoint import COMPONENTS

_COUNTING = (
    "calibrate.asked", "calibrate.collect", "calibrate.recorder", "calibrate.sensitivity", "calibrate.statistics",
    "calibrate.views", "model", "checkpoint.rope", "checkpoint.spec", "checkpoint.tensors", "families",
    "processing.images", "processing.chat_template", "processing.fast_tokenizer", "processing.image",
    "processing.json_tokenizer",
    "processing.messages", "processing.prompt", "processing.prompt_builder", "processing.sentencepiece_tokenizer",
    "processing.special_tokens", "processing.tokenizer", "processing.vocabulary_files",
)  # fmt: skip
"""Modules and rooms that imports are followed into. What the others find out is in the key already: the Spec, the bytes
of tokenizer and images."""

_ALWAYS = ("model.vlm", "processing.fast_tokenizer", "processing.images", "processing.json_tokenizer")
"""Modules that no import of a measurement names; nor does one name the families."""

_TOOLS = ("torch", "transformers", "timm", "pillow", "sentencepiece", "tokenizers")


def code(spec: Spec, measurement: str, components: tuple[str, ...] = COMPONENTS) -> list[str | None]:
    """Hash of the modules that count, and versions.

    Args:
        measurement: the module that measures, as ``calibrate.collect``.
        components: whose kinds of modules count.
    """
    return [_hash(frozenset(modules(spec, measurement, components))), *map(_version, _TOOLS)]


def modules(spec: Spec, measurement: str, components: tuple[str, ...]) -> set[str]:
    """Names, without ``vlmexport.``, of the modules that count."""
    found: set[str] = set()
    todo = [measurement, *_ALWAYS, *(f"families.{name}" for name in families.names())]
    todo.append(f"processing.{spec.image_processor.mode}")
    todo += [name for component in components for name in _kinds(spec, component)]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [other for other in _imports(_file(name)) if other.startswith(_COUNTING)]
    return found


def _kinds(spec: Spec, component: str) -> Iterator[str]:
    """Modules of the kind of a component; an encoder may hold another one, which its variant names."""
    part = getattr(spec, component)
    yield plugins.plugin(component, part.kind).__name__.removeprefix("vlmexport.")
    inner = getattr(part, "variant", "").partition(":")[0]
    if inner and _file(f"model.{component}.{inner}").is_file():
        yield f"model.{component}.{inner}"


@cache
def _hash(names: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0".encode() + _file(name).read_bytes())
    return digest.hexdigest()


def _file(name: str) -> Path:
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, inside its functions too."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("vlmexport."):
            continue
        module = str(node.module).removeprefix("vlmexport.")
        yield module
        names = (f"{module}.{alias.name}" for alias in node.names)
        yield from (name for name in names if _file(name).is_file())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
