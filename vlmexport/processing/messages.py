"""A conversation: messages of roles, each of texts and images in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from vlmexport.errors import UsageError
from vlmexport.text import is_utf8

Role = Literal["system", "user", "assistant"]


class Picture(Enum):
    """What stands for an image in a message: the next one of the conversation."""

    NEXT = "image"


Part = str | Picture


@dataclass(frozen=True)
class Message:
    """What one side says: texts, and images where they stand between them."""

    role: Role
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts alone."""
        return "".join(part for part in self.content if isinstance(part, str))

    def document(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": [_document(part) for part in self.content]}


def _document(part: Part) -> dict[str, str]:
    return {"type": "image"} if isinstance(part, Picture) else {"type": "text", "text": part}


Messages = Sequence[Message]


def asked(question: str, images: int = 1) -> tuple[Message, ...]:
    """One question about images, which stand before it."""
    return (Message("user", (*[Picture.NEXT] * images, question)),)


def refuse_markers(messages: Messages, *markers: str) -> None:
    """Raise where a text would be read as an image, or cannot be read at all.

    Raises:
        UsageError: it holds a marker, so that the model would look for another image; or it has half characters, which
            no tokenizer takes.
    """
    images = sum(part is Picture.NEXT for message in messages for part in message.content)
    for message in messages:
        if not is_utf8(message.text):
            raise UsageError(f"the question is no UTF-8 (in {message.text!a})", "pass it in UTF-8")
        for marker in markers:
            if marker in message.text:
                raise UsageError(
                    f"the question holds {marker}, and there {'is only one image' if images == 1 else f'are {images}'}",
                    f"leave {marker} out: the prompt puts it before the question",
                )
