"""JSON documents of a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.substitutes import refuse_substitute
from vlmexport.errors import CheckpointError

LARGEST = 128 << 20
"""Bytes of a document: published tokenizers take up to 35 MB, and a parsed document ten times its size in memory."""


def read_bounded(path: Path) -> bytes:
    """A document's bytes.

    Raises:
        ValueError: there are more of them than any document of a model has.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file.

    Raises:
        CheckpointError: it cannot be read, is no JSON, too large, or no object.
    """
    if not path.is_file():
        return {}
    try:
        document = json.loads(read_bounded(path))
    except (ValueError, RecursionError) as error:
        refuse_substitute(path)
        raise CheckpointError(f"{path} is not JSON ({error})", "download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not a JSON object", "download it again")
    return document


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
        CheckpointError: it cannot be read, is too large, or no UTF-8.
    """
    try:
        return read_bounded(path).decode()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})", "download it again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: there is no such folder or file, or the folder holds a LoRA adapter.
    """
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist", "pass the folder of a checkpoint, or `demo`")
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, not the folder of a checkpoint", f"pass {folder.parent}")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is a LoRA adapter, not a model",
            "merge it into its base model, save that, and pass its folder (docs/checkpoints.md)",
        )
    if not (folder / "config.json").is_file():
        inside = sorted([*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")])
        cure = f"pass a folder inside, such as {inside[0].parent}" if inside else "pass the folder that holds it"
        raise CheckpointError(f"{folder} is not a checkpoint (it has no config.json)", cure)
    return read_object(folder / "config.json")


def section(document: dict[str, Any], key: str, path: Path) -> dict[str, Any] | None:
    """An object inside a document; None where it is absent or null.

    Raises:
        CheckpointError: it is no object.
    """
    value = document.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{path}: {key} is not a JSON object", "use the published file")
    return value


def whole(document: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number of a document; ``default`` where it is absent or null.

    Raises:
        KeyError: it is absent, and there is no default.
        TypeError: it is none: a text, a fraction, an infinity, true or false.
    """
    value = document.get(key)
    if value is None:
        if default is None:
            raise KeyError(key)
        return default
    exact = value.is_integer() if isinstance(value, float) else isinstance(value, int)
    if isinstance(value, bool) or not exact:
        raise TypeError(f"{key} ({value!r} is no whole number)")
    return int(value)


def flag(document: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """True or false of a document; ``default`` where it is absent or null.

    Raises:
        TypeError: it is neither: ``"false"`` is a text, and true to Python.
    """
    value = document.get(key)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{key} ({value!r} is neither true nor false)")
    return default if value is None else value


def architectures(config: dict[str, Any]) -> list[str]:
    """The architectures that a config names."""
    found = config.get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []
