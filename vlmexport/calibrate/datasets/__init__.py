"""People's own samples for ``check --data``: a folder of images, a file of questions, LLaVA's JSON, COCO's captions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from vlmexport.calibrate.datasets import coco, folder, llava, questions
from vlmexport.calibrate.samples import Sample
from vlmexport.errors import UsageError
from vlmexport.text import is_utf8

QUESTIONS = "questions.jsonl"
_KNOWN = "a folder of images, JSON Lines of questions, LLaVA's JSON or COCO's captions (docs/parity.md)"


class Form(Protocol):
    """What the module of a form of file supplies."""

    NAME: str

    def recognises(self, document: Any) -> bool:
        """Whether a document is of this form."""

    def samples(self, document: Any, path: Path) -> list[Sample]:
        """Of a document that was read from a path."""


def read(path: Path) -> list[Sample]:
    """All samples, the questions about an image side by side. The order of the images is random and always the same, so
    that any first part of them is fair.

    Raises:
        UsageError: there is nothing, it is of no known form, an image is missing, or a name or a text is no UTF-8.
    """
    if not path.exists():
        raise UsageError(f"data {path} does not exist", f"pass {_KNOWN}")
    if (path / QUESTIONS).is_file():
        path = path / QUESTIONS
    samples = folder.samples(path) if path.is_dir() else _of_file(path)
    if not samples:
        raise UsageError(f"{path} holds no images", f"pass {_KNOWN}")
    for sample in samples:
        for text in (sample.image_id, sample.id, sample.question, *sample.answers):
            if not is_utf8(text):
                raise UsageError(f"{path}: {text!a} is no UTF-8", "rename the image, or write the file in UTF-8")
    return sorted(samples, key=lambda sample: (_random(sample.image_id), _random(sample.id)))


def _random(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _of_file(path: Path) -> list[Sample]:
    document = _document(path)
    forms: tuple[Form, ...] = (coco, llava, questions)
    for form in forms:
        if form.recognises(document):
            try:
                return form.samples(document, path)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise UsageError(f"{path} looks like {form.NAME}, but not all of it ({error!r})", "mend it") from error
    raise UsageError(f"{path} is of no known form", f"pass {_KNOWN}")


def _document(path: Path) -> Any:
    """JSON, or a list of JSON Lines, whose files are often called .json too; one line alone is a list of one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        try:
            document = json.loads(text)
        except json.JSONDecodeError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return [document] if isinstance(document, dict) and "image" in document else document
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is neither JSON nor JSON Lines ({error})", f"pass {_KNOWN}") from error
