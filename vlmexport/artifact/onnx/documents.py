"""The documents of an ONNX bundle: those that the checkpoint's family copies, and the others as a LLaVA has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vlmexport import families
from vlmexport.artifact.onnx import client_files
from vlmexport.artifact.onnx.client_files import Layout
from vlmexport.artifact.onnx.genai import genai
from vlmexport.checkpoint.documents import read_object
from vlmexport.families.reading.bundles import Clients
from vlmexport.recipe import Onnx
from vlmexport.source.checkpoint import Checkpoint

_CONFIG, _PREPROCESSOR, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_TOKENIZER, _GENERATION, _GENAI = "tokenizer_config.json", "generation_config.json", "genai_config.json"
_MADE: Mapping[str, Callable[[Layout], dict[str, Any]]] = {
    _PREPROCESSOR: lambda layout: client_files.preprocessor(layout.spec),
    _PROCESSOR: client_files.processor,
    _TOKENIZER: client_files.tokenizer,
    _CONFIG: client_files.config,
    _GENERATION: client_files.generation,
}


def documents(checkpoint: Checkpoint, settings: Onnx, written: Iterable[str]) -> dict[str, str]:
    """File name → content, for a bundle of graphs alone. Transformers.js and onnxruntime-genai generate text: a
    classifier goes without what is theirs alone.

    Args:
        written: paths of its files with weights.

    Raises:
        Unsupported: the clients' files cannot hold the model.
    """
    clients = families.clients(checkpoint.family, checkpoint.spec)
    layout, own = Layout.of(checkpoint, settings, written), _own(checkpoint, clients)
    generates = checkpoint.spec.language.generates
    found: dict[str, dict[str, Any]] = {}
    for name, make in _MADE.items():
        if name in clients.made:
            found[name] = dict(clients.made[name])
        elif generates or name != _GENERATION:
            found[name] = own.pop(name, {}) or make(layout)
    found[_CONFIG] |= client_files.transformers_js(layout) if generates else {}
    if not generates:
        found[_CONFIG] = client_files.classifier(layout, found[_CONFIG])
    elif clients.genai is not None:
        found[_GENAI] = genai(layout, clients.genai)
    found |= own
    for name, changes in clients.changes.items():
        found[name] = {**found.get(name, {}), **changes}
    return {name: _text(document) for name, document in found.items() if document} | _templates(checkpoint, clients)


def of_pictures(checkpoint: Checkpoint) -> dict[str, str]:
    """The same where another engine decodes: what makes pixels."""
    clients = families.clients(checkpoint.family, checkpoint.spec)
    own = _own(checkpoint, clients).get(_PREPROCESSOR) or clients.made.get(_PREPROCESSOR)
    own = own or client_files.preprocessor(checkpoint.spec)
    return {_PREPROCESSOR: _text({**own, **clients.changes.get(_PREPROCESSOR, {})})}


def _own(checkpoint: Checkpoint, clients: Clients) -> dict[str, dict[str, Any]]:
    """Of the documents that are copied those that the checkpoint has. Transformers 5 saves an image processor in its
    processor's file, where transformers.js does not look; and a template in a file of its own."""
    folder = checkpoint.path
    found = {name: read_object(folder / name) for name in clients.copied if name.endswith(".json")}
    nested = found.get(_PROCESSOR, {}).get("image_processor")
    if _PREPROCESSOR in clients.copied and not found[_PREPROCESSOR] and isinstance(nested, dict):
        found[_PREPROCESSOR] = {**nested, "processor_class": found[_PROCESSOR].get("processor_class")}
    told = {**clients.pixels, **checkpoint.pixels}
    if found.get(_PREPROCESSOR):
        found[_PREPROCESSOR] |= told
    if isinstance(nested, dict):
        nested |= told
    if found.get(_TOKENIZER):
        found[_TOKENIZER] = {"chat_template": checkpoint.spec.template, **found[_TOKENIZER]}
    return {name: document for name, document in found.items() if document}


def _templates(checkpoint: Checkpoint, clients: Clients) -> dict[str, str]:
    """Copied documents that are no JSON."""
    paths = [checkpoint.path / name for name in clients.copied if not name.endswith(".json")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
