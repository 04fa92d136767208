"""LLaVA's JSON: a list of entries with ``image`` and ``conversations``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vlmexport.calibrate.datasets.images import find_all, sample
from vlmexport.calibrate.samples import Sample
from vlmexport.processing.messages import Message, Part, Picture, Role
from vlmexport.processing.tokenizer import IMAGE_MARKER

NAME = "LLaVA's JSON"
_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


def recognises(document: Any) -> bool:
    """Whether it is such a list."""
    return (
        isinstance(document, list)
        and bool(document)
        and isinstance(document[0], dict)
        and "conversations" in document[0]
    )


def samples(document: Any, path: Path) -> list[Sample]:
    """Every turn of each entry with an image, asked behind the turns before it and their right answers.

    Images lie beside the file, or in ``images/`` there; ``image`` names one or a list of several.

    Raises:
        ValueError: the turns name other images than the entry has.
    """
    found, turns = [], Counter[str]()
    for entry in document:
        if "image" not in entry:
            continue
        name, file, more = find_all(entry["image"], path)
        messages = _messages(entry["conversations"], 1 + len(more))
        for number, message in enumerate(messages):
            if message.role != "user":
                continue
            answers = [one.text for one in messages[number + 1 : number + 2] if one.role == "assistant"]
            said = tuple(messages[: number + 1]) if number or more else ()
            shown = _images(said) - 1 if said else 0
            if shown < 0:
                raise ValueError(f"a question of {name} comes before its image")
            seen = dict(islice(more.items(), shown))
            found.append(sample(name, turns[name], file, message.text, answers, more=seen, conversation=said))
            turns[name] += 1
    return found


def _messages(conversation: list[dict[str, str]], images: int) -> list[Message]:
    """Turns with their images where ``<image>`` stands; before all where it stands nowhere."""
    found = []
    for number, turn in enumerate(conversation):
        role = _ROLES.get(str(turn.get("from")), ("user", "assistant")[number % 2])
        pieces = [piece.strip() for piece in turn["value"].split(IMAGE_MARKER)]
        content: list[Part] = [Picture.NEXT] * images if not number and not _named(conversation) else []
        for at, piece in enumerate(pieces):
            content += [Picture.NEXT] if at else []
            content += [piece] if piece or len(pieces) == 1 else []
        found.append(Message(role, tuple(content)))
    if _images(found) != images:
        raise ValueError(f"{images} images, and {_images(found)} in the conversation")
    return found


def _named(conversation: list[dict[str, str]]) -> int:
    return sum(turn["value"].count(IMAGE_MARKER) for turn in conversation)


def _images(messages: Sequence[Message]) -> int:
    return sum(part is Picture.NEXT for message in messages for part in message.content)
