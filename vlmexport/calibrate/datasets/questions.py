"""Questions about images, one JSON object each: ``image`` (a name, or a list of several), ``question``, and ``answer``
or ``answers`` where known.

POPE's names (``text``, ``label``) are taken too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from vlmexport.calibrate.datasets.images import find_all, sample
from vlmexport.calibrate.samples import Sample

NAME = "JSON Lines of questions"


def recognises(document: Any) -> bool:
    """Whether it is a list of these."""
    return (
        isinstance(document, list)
        and bool(document)
        and isinstance(document[0], dict)
        and "image" in document[0]
        and bool({"question", "text"} & document[0].keys())
    )


def samples(document: Any, path: Path) -> list[Sample]:
    """One sample a question. Images lie beside the file, or in ``images/`` there."""
    found, turns = [], Counter[str]()
    for entry in document:
        name, file, more = find_all(entry["image"], path)
        question = _text(entry["question"] if "question" in entry else entry["text"])
        found.append(sample(name, turns[name], file, question, _answers(entry), more=more))
        turns[name] += 1
    return found


def _answers(entry: dict[str, Any]) -> list[str]:
    several = entry.get("answers")
    if several is not None:
        return [_text(answer["answer"] if isinstance(answer, dict) else answer) for answer in several]
    one = entry.get("answer", entry.get("label"))
    return [] if one is None else [_text(one)]


def _text(value: Any) -> str:
    """A text, or a number as one.

    Raises:
        TypeError: it is neither; true is not the answer "True".
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is no text")
    return str(value)
