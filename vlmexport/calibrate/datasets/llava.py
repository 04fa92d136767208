"""LLaVA's JSON: a list of entries with ``image`` and ``conversations``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from vlmexport.calibrate.datasets.images import find, sample
from vlmexport.calibrate.samples import Sample
from vlmexport.processing.tokenizer import IMAGE_MARKER

NAME = "LLaVA's JSON"


def recognises(document: Any) -> bool:
    """Whether it is such a list."""
    return (
        isinstance(document, list)
        and bool(document)
        and isinstance(document[0], dict)
        and "conversations" in document[0]
    )


def samples(document: Any, path: Path) -> list[Sample]:
    """The first question of each entry with an image: later ones cannot be asked without those before them.

    Images lie beside the file, or in ``images/`` there.
    """
    found, turns = [], Counter[str]()
    for entry in document:
        if "image" not in entry:
            continue
        name = str(entry["image"])
        file = find(name, path, (path.parent, path.parent / "images"))
        asked, answered = (turn["value"] for turn in entry["conversations"][:2])
        question = asked.replace(IMAGE_MARKER, "").strip()
        found.append(sample(name, turns[name], file, question, [answered.strip()]))
        turns[name] += 1
    return found
