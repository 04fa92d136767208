"""Whether two comparisons are of the same float model and the same samples; where not, what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlmexport.parity.result import Inputs

_SHOWN = 3


Model = tuple[Mapping[str, str], Mapping[str, Any]]
"""Hashes of a float model's weight files, and its configuration (``configuration_of``)."""


def other_model(old: Model, old_name: str, new: Model, new_name: str) -> str | None:
    """What differs of two float models: the files of their weights, else the fields of their configuration.

    Args:
        old_name: where the old one's values stand, as ``the bundle``; ``new_name`` likewise.

    Returns:
        A few words; None where they are the same model.
    """
    files = _changed(old[0], new[0])
    if files:
        return f"its weights differ: {_list(files)}"
    found = [
        f"{name}: {_value(ours)} in {old_name}, {_value(theirs)} in {new_name}"
        for name, ours, theirs in _fields(old[1], new[1])
    ]
    return _list(found) if found else None


def other_samples(old: Inputs, new: Inputs) -> str | None:
    """What differs of the samples of two comparisons; None where they are the same."""
    if old.samples != new.samples:
        return "other samples"
    pictures = _changed(old.images, new.images)
    return f"other pictures under the same names: {_list(pictures)}" if pictures else None


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of what is not the same in both."""
    return [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]


def _fields(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Fields that differ, by their path. One that only one of them has is of another version, and says nothing."""
    for key in sorted(old.keys() & new.keys()):
        name, ours, theirs = path + key, old[key], new[key]
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _fields(ours, theirs, f"{name}.")
        elif ours != theirs:
            yield name, ours, theirs


def _value(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def _list(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
