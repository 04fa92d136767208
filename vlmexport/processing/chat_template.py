"""The prompt of a bundle as its clients make it: by the chat template that lies in the bundle."""

from __future__ import annotations

from vlmexport.errors import CheckpointError
from vlmexport.processing import template_process
from vlmexport.processing.messages import Messages, Picture, refuse_markers
from vlmexport.processing.tokenizer import IMAGE_MARKER

_CURE = "export the bundle again; if a stranger made it, do not trust it"


class ChatTemplate:
    """A Jinja template, rendered as transformers, transformers.js and llama.cpp do, in a process of its own.

    Args:
        source: the template.
        marker: what stands for an image in a rendered text.
        where: the file that holds it, for messages.

    Raises:
        CheckpointError: there is none.
    """

    def __init__(self, source: object, marker: str, where: str) -> None:
        if not isinstance(source, str) or not source:
            raise CheckpointError(f"{where} holds no chat template", _CURE)
        self._source, self._marker, self._where = source, marker, where
        template_process.start()

    def text(self, messages: Messages) -> str:
        """The prompt of a conversation, with ``<image>`` where the tokens of an image go.

        Raises:
            UsageError: a text names an image.
            CheckpointError: the template cannot be rendered, or leaves an image out.
        """
        refuse_markers(messages, IMAGE_MARKER, self._marker)
        try:
            text = template_process.rendered(self._source, tuple(messages))
        except ValueError as error:
            raise CheckpointError(f"the chat template of {self._where} cannot be rendered ({error})", _CURE) from error
        images = sum(part is Picture.NEXT for message in messages for part in message.content)
        text = text.replace(self._marker, IMAGE_MARKER)
        if text.count(IMAGE_MARKER) != images:
            raise CheckpointError(f"the chat template of {self._where} leaves the image out", _CURE)
        return text
