"""``general.*`` of a GGUF file: what programs show of a model, and how they sample by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.artifact.bundle.contents import tool_versions
from vlmexport.checkpoint.about import About, address
from vlmexport.families.reading.bundles import Field

if TYPE_CHECKING:
    from vlmexport.source.checkpoint import Checkpoint

_TASK = "image-text-to-text"


def fields(checkpoint: Checkpoint, *components: str) -> dict[str, Field]:
    """Name, size, licence, base models, source and who quantized it.

    Args:
        components: those that the file holds, for its size.
    """
    about = checkpoint.about
    count = sum(checkpoint.parameters(component) for component in components)
    found: dict[str, Field] = {
        "general.name": ("str", checkpoint.spec.name),
        "general.size_label": ("str", size_label(count)),
        "general.quantized_by": ("str", f"vlmexport {tool_versions()['vlmexport']}"),
        "general.tags": ("str[]", [_TASK]),
    }
    texts = {
        "general.license": about.license,
        "general.license.name": about.license_name,
        "general.license.link": about.license_link,
        "general.source.repo_url": about.source,
    }
    found |= {key: ("str", text) for key, text in texts.items() if text}
    return found | _base_models(about)


def _base_models(about: About) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for i, hub_id in enumerate(about.base_models):
        organization, _, name = hub_id.partition("/")
        found[f"general.base_model.{i}.name"] = ("str", name)
        found[f"general.base_model.{i}.organization"] = ("str", organization)
        found[f"general.base_model.{i}.repo_url"] = ("str", address(hub_id))
    return {"general.base_model.count": ("u32", len(about.base_models)), **found} if found else {}


def sampling(about: About) -> dict[str, Field]:
    """Defaults that llama.cpp takes where a request says nothing: greedy, as transformers and our checks decode,
    unless the checkpoint's ``generation_config.json`` says otherwise."""
    values = about.sampling or {"temperature": 0.0}
    found: dict[str, Field] = {"general.sampling.temp": ("f32", float(values.get("temperature", 1.0)))}
    if "top_k" in values:
        found["general.sampling.top_k"] = ("i32", int(values["top_k"]))
    if "top_p" in values:
        found["general.sampling.top_p"] = ("f32", float(values["top_p"]))
    return found


def size_label(count: int) -> str:
    """Parameters as people say them: 7.2M, 1.4B."""
    unit, scale = ("B", 1e9) if count >= 999_500_000 else ("M", 1e6) if count >= 999_500 else ("K", 1e3)
    value = count / scale
    return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"
