"""Conversations to prompts: by a chat template and a tokenizer, those of a checkpoint or of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from vlmexport.checkpoint.image_text import ImageText, token_of
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.chat_template import ChatTemplate, Rendered
from vlmexport.processing.messages import Messages, Picture
from vlmexport.processing.prompt import Prompt, Views, joined, located
from vlmexport.processing.tokenizer import Parts, Tokenizer


class Chunks(Protocol):
    """What tokenizes: a ``Tokenizer``, or a library in another process."""

    def chunks(self, chunks: Iterable[Parts]) -> list[list[int]]:
        """Token ids of the texts around images, each tokenized by itself; the first begins with BOS."""


class PromptBuilder:
    """Makes the prompts of one model.

    Args:
        max_images: most images of one prompt; None where there is no limit.
        image_text: what stands for an image where the text around it is tokenized with it, as one. None where an image
            parts two texts that are tokenized each by itself.
    """

    def __init__(
        self, template: ChatTemplate, tokenizer: Chunks, max_images: int | None, image_text: ImageText | None = None
    ) -> None:
        self._template, self._tokenizer, self._max_images = template, tokenizer, max_images
        self._image_text = image_text

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """The prompt of a conversation, up to where the answer begins.

        Args:
            images: how the visual tokens of each of its images lie.

        Raises:
            UsageError: more images than the model was trained for, a text that names an image, or one that is no UTF-8.
            CheckpointError: the template cannot be rendered, or leaves out an image or the question; or the tokenizer
                has no image token.
        """
        shown = sum(part is Picture.NEXT for message in messages for part in message.content)
        if self._max_images is not None and shown > self._max_images:
            most = "one image" if self._max_images == 1 else f"{self._max_images} images"
            raise UsageError(
                f"the conversation has {shown} images, and the model was trained with {most} a prompt",
                "ask about each of them by itself",
            )
        rendered = self._template.render(messages)
        if self._image_text is None:
            return joined(rendered.text, self._tokenizer.chunks(rendered.chunks), images)
        (ids,) = self._tokenizer.chunks([_whole(rendered, self._image_text, images)])
        return located(rendered.text, ids, self._image_token, images)

    @cached_property
    def _image_token(self) -> int:
        """The id that stands for a visual token in a text."""
        assert self._image_text is not None
        _, ids = self._tokenizer.chunks([(), ((self._image_text.token, True),)])
        if len(ids) != 1:
            raise CheckpointError(
                f"the tokenizer has no token {self._image_text.token}", "use the published tokenizer files"
            )
        return ids[0]


class CheckpointPrompts(PromptBuilder):
    """Those of a checkpoint.

    Args:
        where: of the template, for messages.
    """

    def __init__(self, spec: Spec, tokenizer: Tokenizer, where: str) -> None:
        texts = tokenizer.texts()
        bos = "" if spec.bos_token_id is None else texts.get(spec.bos_token_id, "")
        template = ChatTemplate(spec.template, token_of(spec.image_text), where, bos, texts.get(spec.eos_token_id, ""))
        super().__init__(template, tokenizer, spec.max_images, spec.image_text)
        self.tokenizer, self._spec = tokenizer, spec

    def answer(self, text: str) -> list[int]:
        """Token ids of a given answer, as the model was taught to give it: with the end of its turn."""
        return [*self.tokenizer.encode(text), self.end_of_turn]

    @cached_property
    def end_of_turn(self) -> int:
        """The token that the template writes behind an answer; EOS where it writes none."""
        ids = self.tokenizer.encode(self._template.behind_an_answer(), special=True)
        return next((i for i in ids if i in self._spec.stop_token_ids), self._spec.eos_token_id)


def _whole(rendered: Rendered, image_text: ImageText, images: Sequence[Views]) -> Parts:
    """A prompt's text in parts, with what stands for the images between those around them."""
    first, *others = rendered.chunks
    parts = list(first)
    for number, (views, chunk) in enumerate(zip(images, others, strict=True)):
        begin = image_text.begin.replace("{image}", f"{number}") if len(images) > 1 else ""
        parts += [(begin + written(image_text, views), True), *chunk]
    return parts


def written(image_text: ImageText, views: Views) -> str:
    """What stands for an image in a prompt, an image token for each visual token."""
    rows, columns = views.tiles
    tokens = [image_text.token * (height * width) for height, width in views.grids]
    wholes = len(tokens) - rows * columns
    first = wholes if image_text.whole_first else 0
    text = ""
    for place, tile in enumerate(tokens[first : first + rows * columns]):
        row, column = divmod(place, columns)
        text += image_text.tile.replace("{row}", f"{row + 1}").replace("{column}", f"{column + 1}") + tile
        text += image_text.row_end if column + 1 == columns else ""
    if wholes:
        whole = (image_text.whole if rows else image_text.alone) + tokens[first - 1]
        text = whole + text if image_text.whole_first else text + whole
    return image_text.start + text + image_text.end
