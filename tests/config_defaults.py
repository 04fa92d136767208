"""Defaults of transformers' config classes, as ``vlmexport/families/reading/defaults.json`` holds them.

``python -m tests.config_defaults`` writes that file anew, for the classes of the installed transformers.
"""

from __future__ import annotations

import json
from pkgutil import iter_modules
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import vlmexport.model.language
from vlmexport import families
from vlmexport.families.reading.defaults import FILE

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""What ``model/vision`` has, by transformers' names."""


def model_types() -> list[str]:
    """Of the families, of the language models in ``model/language``, and of the towers, as far as transformers has a
    class for them; and of the sections inside."""
    found = {kind for name in families.names() for kind in families.family(name).MODEL_TYPES}
    found |= {info.name for info in iter_modules(vlmexport.model.language.__path__)} | set(TOWERS)
    found &= set(CONFIG_MAPPING)
    inside = {spec.model_type for kind in found for spec in _sections(kind).values()}
    return sorted(found | inside)


def _sections(kind: str) -> dict[str, Any]:
    return CONFIG_MAPPING[kind].sub_configs_defaults or {}


def of(kind: str) -> dict[str, Any]:
    """What a class says of its fields, null included; of a section, what its default says beside its own class."""
    from dataclasses import MISSING, fields

    found: dict[str, Any] = {}
    for field in fields(CONFIG_MAPPING[kind]):
        if field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not MISSING and not callable(field.default):
            found[field.name] = field.default
    sections = {key: {"model_type": spec.model_type} | spec.init_kwargs for key, spec in _sections(kind).items()}
    base = {field.name for field in fields(PreTrainedConfig)} - set(CONFIG_MAPPING[kind].__annotations__)
    kept = {key: value for key, value in found.items() if key not in base}
    return json.loads(json.dumps({"model_type": kind} | kept | sections))  # type: ignore[no-any-return]


def made() -> dict[str, Any]:
    """The whole document: defaults by model type, and what every config and every generation config may hold."""
    return {
        "models": {kind: of(kind) for kind in model_types()},
        "every_config": sorted({*PreTrainedConfig().to_dict(), *PreTrainedConfig().__dict__}),
        "generation": sorted(key for key in GenerationConfig().to_dict() if not key.startswith("_")),
    }


def text() -> str:
    return json.dumps(made(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
