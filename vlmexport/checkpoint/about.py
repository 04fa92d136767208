"""What a checkpoint's publishers say of it: licence, base model, how to sample. None of it has to be there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_bounded, read_object
from vlmexport.checkpoint.hub import hub_id, is_hub_id
from vlmexport.checkpoint.snapshots import repository

_HUB = "https://huggingface.co/"
_SAMPLING = ("temperature", "top_k", "top_p")


@dataclass(frozen=True)
class About:
    """``license`` is the model card's, with its name and link where it is none of the Hub's list; ``base_models`` are
    Hub ids; ``source`` is the address of the checkpoint itself; ``sampling`` the values of ``generation_config.json``,
    empty where answers are greedy (transformers' default)."""

    license: str | None
    license_name: str | None
    license_link: str | None
    base_models: tuple[str, ...]
    source: str | None
    sampling: dict[str, float]


def read_about(folder: Path, origin: str, config: dict[str, Any]) -> About:
    """Read the model card's header and ``generation_config.json`` of a folder.

    Args:
        origin: what the folder was opened by; a Hub id, or that of a snapshot in the Hub's cache, is the source, and
            the base model where nothing names another.
        config: ``config.json``; its ``_name_or_path`` counts where the card names no base model and it is a Hub id.

    Raises:
        CheckpointError: ``generation_config.json`` is not JSON.
    """
    card = _card(folder / "README.md")
    found = None if Path(origin).is_dir() else hub_id(origin)
    hub = found.name if found else repository(folder)
    bases = _texts(card.get("base_model")) or _texts(config.get("_name_or_path")) or _texts(hub)
    licenses = _texts(card.get("license"))
    return About(
        license=licenses[0] if licenses else None,
        license_name=_text(card.get("license_name")),
        license_link=_text(card.get("license_link")),
        base_models=tuple(name for name in bases if is_hub_id(name)) or _texts(hub),
        source=_HUB + hub if hub else None,
        sampling=_sampling(read_object(folder / "generation_config.json")),
    )


def address(hub_id: str) -> str:
    """The page of a Hub id."""
    return _HUB + hub_id


def _card(path: Path) -> dict[str, Any]:
    """The header of a model card; empty where there is none that can be read, for nothing depends on it."""
    from huggingface_hub import metadata_load

    try:
        read_bounded(path)
        return metadata_load(path) or {}
    except Exception:  # the errors of the YAML reader share no base class with the others
        return {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if _text(text))


def _sampling(config: dict[str, Any]) -> dict[str, float]:
    if config.get("do_sample") is not True:
        return {}
    numbers = {key: config[key] for key in _SAMPLING if isinstance(config.get(key), int | float)}
    return {key: float(value) for key, value in numbers.items() if value >= 0} or {"temperature": 1.0}
