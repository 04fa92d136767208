"""The prompt of a bundle as its clients make it: by the chat template that lies in the bundle."""

from __future__ import annotations

from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing import template_process
from vlmexport.processing.tokenizer import IMAGE_MARKER, split_prompt

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

    def prompt(self, question: str) -> tuple[str, str, str]:
        """The prompt of one question about one image, with ``<image>`` where its tokens go; and the texts around it.

        Raises:
            UsageError: the question names a second image.
            CheckpointError: the template cannot be rendered, or leaves the image out.
        """
        if self._marker in question or IMAGE_MARKER in question:
            marker = IMAGE_MARKER if IMAGE_MARKER in question else self._marker
            raise UsageError(
                f"the question holds {marker}, and there is only one image",
                f"leave {marker} out: the prompt puts it before the question",
            )
        try:
            text = template_process.rendered(self._source, question)
        except ValueError as error:
            raise CheckpointError(f"the chat template of {self._where} cannot be rendered ({error})", _CURE) from error
        if self._marker not in text:
            raise CheckpointError(f"the chat template of {self._where} leaves the image out", _CURE)
        text = text.replace(self._marker, IMAGE_MARKER, 1)
        return text, *split_prompt(text)
