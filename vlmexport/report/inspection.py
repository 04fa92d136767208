"""What ``vlmexport inspect`` shows of a checkpoint (from its config and tensor headers alone) or of a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from vlmexport.artifact.bundle.halves import LLAMA_CPP
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.artifact.gguf.mmproj import projector_of
from vlmexport.console import QUIET, Console
from vlmexport.errors import Unsupported
from vlmexport.model import plugins
from vlmexport.processing.image import cutting
from vlmexport.report import bundle, library
from vlmexport.source.checkpoint import COMPONENTS, Checkpoint
from vlmexport.source.locate import open_model


def describe(
    model: str, vision_tower: str | None = None, console: Console = QUIET
) -> tuple[RenderableType, dict[str, Any]]:
    """For people, and in plain data.

    Args:
        model: a checkpoint or a bundle.
        vision_tower: a CLIP folder, for a checkpoint that does not carry its tower.
        console: where downloads are told of.

    Raises:
        UsageError: neither a checkpoint nor a bundle.
    """
    if (Path(model) / MANIFEST).is_file():
        manifest = read_manifest(Path(model))
        facts = bundle.facts(Path(model), manifest)
        shown: Table = bundle.table(facts)
        uses_libmtmd = manifest.seeing.engine == LLAMA_CPP
    else:
        facts = inspection(open_model(model, vision_tower, console))
        shown, uses_libmtmd = table(facts), facts["formats"]["gguf"] == "yes"
    if uses_libmtmd:
        facts["libmtmd"] = library.facts()
        shown.caption = f"{shown.caption}\n{facts['libmtmd']['text']}"
    return shown, facts


def inspection(checkpoint: Checkpoint) -> dict[str, Any]:
    """Components with parameters and bytes, visual tokens, and what each format can hold."""
    spec = checkpoint.spec
    encoder = ":".join(part for part in (spec.vision.kind, spec.vision.variant) if part)
    kinds = {"vision": encoder, "projector": spec.projector.kind, "language": spec.language.kind}
    components = {}
    for component in COMPONENTS:
        tensors = checkpoint.tensors[component].values()
        components[component] = {
            "kind": kinds[component],
            "tensors": len(tensors),
            "parameters": checkpoint.parameters(component),
            "bytes": sum(tensor.nbytes for tensor in tensors),
            "dtypes": sorted({tensor.dtype for tensor in tensors}),
        }
    plugins.check_parts(checkpoint)
    holds = {"onnx": "yes", "gguf": "yes"}
    try:
        projector_of(spec)
    except Unsupported as error:
        holds["gguf"] = f"as a hybrid, with --vision onnx: {error.what}"
    try:
        plugins.language(spec.language).gguf(spec.language)
    except Unsupported as error:
        holds["gguf"] = f"no: {error.what}"
    return {
        "name": spec.name,
        "layout": spec.layout,
        "tower": checkpoint.tower.origin if checkpoint.tower else "inside",
        "tokenizer": checkpoint.tokenizer.path.name,
        "weight_files": list(checkpoint.weight_files),
        "components": components,
        "visual_tokens": plugins.num_tokens(spec.projector),
        "views": cutting(spec.image_processor).most(spec.image_processor),
        "formats": holds,
        "spec": asdict(spec),
    }


def table(facts: dict[str, Any]) -> Table:
    """For people."""
    spec = facts["spec"]
    vision, language = spec["vision"], spec["language"]
    sizes = {
        "vision": f"{vision['image_size']} px, patch {vision['patch_size']}, {_layers(vision)}",
        "projector": f"{spec['projector']['in_tokens']} patches → {facts['visual_tokens']} visual tokens"
        + _views(facts["views"]),
        "language": f"{language['num_layers']} layers of {language['hidden_size']}, "
        f"vocabulary {language['vocab_size']}{_classes(language)}",
    }
    found = Table(title=f"{facts['name']} ({facts['layout']} layout)", title_justify="left")
    for column in ("component", "kind", "parameters", "MB", "type", "sizes"):
        found.add_column(column, justify="right" if column in ("parameters", "MB") else "left")
    for name, component in facts["components"].items():
        megabytes = f"{component['bytes'] / 1e6:,.1f}"
        row = (name, component["kind"], f"{component['parameters']:,}", megabytes, ", ".join(component["dtypes"]))
        found.add_row(*row, sizes[name])
    files = facts["weight_files"]
    found.caption = (
        f"vision tower: {facts['tower']}; {facts['tokenizer']}; "
        f"{files[0] if len(files) == 1 else f'{len(files)} weight files'}\n"
    ) + "; ".join(f"{name.upper()}: {answer}" for name, answer in facts["formats"].items())
    found.caption_justify = "left"
    return found


def _views(most: int | None) -> str:
    if most == 1:
        return ""
    return (
        f", in each of the {most} views of a square picture" if most else ", in each view, as many as a picture takes"
    )


def _classes(language: dict[str, Any]) -> str:
    return f", {len(language['classes'])} classes" if language["classes"] else ""


def _layers(vision: dict[str, Any]) -> str:
    count = f"{vision['num_layers']} layers of " if vision["num_layers"] else "features of "
    return f"{count}{vision['hidden_size']}"
