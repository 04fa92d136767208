"""The text of a conversation, made by a chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlmexport.errors import CheckpointError
from vlmexport.processing import template_process
from vlmexport.processing.messages import Message, Messages, Picture, refuse_markers
from vlmexport.processing.tokenizer import IMAGE_MARKER, Parts

_CURE = "export the bundle again; if a stranger made it, do not trust it"
_FIRST = 0xF0000
"""A character of a private use plane stands for the first text of a conversation while its template is rendered, the
next for the second, and so on."""

_STANDS_FOR_TEXT = re.compile("([\U000f0000-\U000ffffd])")


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt.

    Attributes:
        text: with ``<image>`` where the tokens of an image go.
        chunks: the texts around the images, in parts: what the template wrote, in which special tokens are tokens, and
            what was said, in which they are plain text.
    """

    text: str
    chunks: tuple[Parts, ...]


class ChatTemplate:
    """A Jinja template, rendered as transformers, transformers.js and llama.cpp do, in a process of its own.

    It never sees what was said: a character stands for each text, so that nothing in a text can be taken for a part of
    the template.

    Args:
        source: the template.
        marker: what stands for an image in a rendered text.
        where: the file that holds it, for messages.
        bos: the text of the token that begins a text, which a template may write; ``eos`` of the one that ends it.

    Raises:
        CheckpointError: there is none.
    """

    def __init__(self, source: object, marker: str, where: str, bos: str = "", eos: str = "") -> None:
        if not isinstance(source, str) or not source:
            raise CheckpointError(f"{where} holds no chat template", _CURE)
        self._source, self._marker, self._where = source, marker, where
        self._tokens = (("bos_token", bos), ("eos_token", eos))
        template_process.start()

    def render(self, messages: Messages) -> Rendered:
        """The prompt of a conversation, up to where the answer begins.

        Raises:
            UsageError: a text names an image.
            CheckpointError: the template cannot be rendered, or leaves out an image or the last text.
        """
        refuse_markers(messages, IMAGE_MARKER, self._marker)
        stands_for: dict[str, str] = {}
        text = self._rendered(tuple(_hidden(message, stands_for) for message in messages), answers=True)
        images = sum(part is Picture.NEXT for message in messages for part in message.content)
        pieces = text.split(IMAGE_MARKER)
        if len(pieces) != images + 1:
            raise CheckpointError(f"the chat template of {self._where} leaves the image out", _CURE)
        if stands_for and next(reversed(stands_for)) not in text:
            raise CheckpointError(f"the chat template of {self._where} leaves the question out", _CURE)
        chunks = tuple(tuple(_parts(piece, stands_for)) for piece in pieces)
        return Rendered(IMAGE_MARKER.join("".join(text for text, _ in parts) for parts in chunks), chunks)

    def behind_an_answer(self) -> str:
        """What the template writes behind an answer, before the next turn begins.

        Raises:
            CheckpointError: the template cannot be rendered.
        """
        stands_for: dict[str, str] = {}
        messages = (Message("user", ("q",)), Message("assistant", ("a",)))
        text = self._rendered(tuple(_hidden(message, stands_for) for message in messages), answers=False)
        return text.rpartition(next(reversed(stands_for)))[2]

    def _rendered(self, messages: tuple[Message, ...], answers: bool) -> str:
        try:
            text = template_process.rendered(self._source, messages, self._tokens, answers)
        except ValueError as error:
            raise CheckpointError(f"the chat template of {self._where} cannot be rendered ({error})", _CURE) from error
        return text.replace(self._marker, IMAGE_MARKER)


def _hidden(message: Message, stands_for: dict[str, str]) -> Message:
    """A message with a character for each text; white space around a text stays, for templates that trim it.

    Args:
        stands_for: is given what each character stands for.
    """
    content = []
    for part in message.content:
        if isinstance(part, str) and (core := part.strip()):
            character = chr(_FIRST + len(stands_for))
            stands_for[character] = core
            part = part.replace(core, character, 1)
        content.append(part)
    return replace(message, content=tuple(content))


def _parts(text: str, stands_for: dict[str, str]) -> Iterator[tuple[str, bool]]:
    """What a template wrote, and what was said."""
    for piece in _STANDS_FOR_TEXT.split(text):
        if piece in stands_for:
            yield stands_for[piece], False
        elif piece:
            yield piece, True
