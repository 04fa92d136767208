"""A prompt as a language model reads it: flat token ids, a run of placeholders where an image's visual tokens go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vlmexport.errors import CheckpointError, UsageError, VlmExportError

PLACEHOLDER = -200
"""The id that stands for one visual token: LLaVA's ``IMAGE_TOKEN_INDEX``, which is no row of any embedding."""

Grid = tuple[int, int]
"""Rows and columns of the visual tokens of one view."""

Grids = tuple[Grid, ...]
"""Of all views of one image, in the order of its features."""

Array = TypeVar("Array")


@dataclass(frozen=True)
class Views:
    """How the visual tokens of one image lie.

    Attributes:
        grids: of each view.
        tiles: rows and columns of the views that are tiles, which stand row by row, and the whole picture before or
            behind them; 0 and 0 where none is a tile.
    """

    grids: Grids
    tiles: Grid = (0, 0)

    @property
    def num_tokens(self) -> int:
        """Visual tokens of all views."""
        return sum(rows * columns for rows, columns in self.grids)


@dataclass(frozen=True, eq=False)
class Seen(Generic[Array]):
    """What a language model is given of one image.

    Attributes:
        tokens: [visual tokens of all views, hidden] of NumPy or torch, in the order of the prompt's spans.
        views: how they lie.
    """

    tokens: Array
    views: Views


@dataclass(frozen=True)
class Span:
    """A run of placeholders: one view of one image.

    Attributes:
        start: its first place among the ids.
        length: how many placeholders it is.
        image: which image of the conversation.
        view: which view of that image.
        grid: rows and columns of the visual tokens.
    """

    start: int
    length: int
    image: int
    view: int
    grid: Grid

    @property
    def end(self) -> int:
        """The first place behind it."""
        return self.start + self.length


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the answer begins.

    Attributes:
        text: what was tokenized, with a marker for each image.
        ids: token ids, placeholders expanded. Markers between views are ordinary ids.
        spans: where placeholders are, in order.
    """

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @property
    def is_image(self) -> npt.NDArray[np.bool_]:
        """Of each id, whether it is a placeholder: bool [ids]."""
        found = np.zeros(len(self.ids), np.bool_)
        for span in self.spans:
            found[span.start : span.end] = True
        return found

    @property
    def num_visual(self) -> int:
        """Placeholders of all images."""
        return sum(span.length for span in self.spans)

    def answered(self, ids: Iterable[int]) -> Prompt:
        """The same with an answer behind it, or the beginning of one."""
        return replace(self, ids=(*self.ids, *ids))

    def chunks(self) -> Iterator[tuple[int, ...] | Span]:
        """The ids cut at the spans: runs of text, none of them empty, and the spans between them."""
        start = 0
        for span in self.spans:
            if span.start > start:
                yield self.ids[start : span.start]
            yield span
            start = span.end
        if start < len(self.ids):
            yield self.ids[start:]

    def parts(self, tokens: Iterable[Any]) -> Iterator[Any]:
        """``chunks`` with visual tokens in place of the spans.

        Args:
            tokens: an array [visual tokens, hidden] for each image, of NumPy or torch: those of all its views, in the
                order of the spans.

        Raises:
            VlmExportError: an image has another number of visual tokens than placeholders.
        """
        images = list(tokens)
        used = [0] * len(images)
        lengths = [0] * len(images)
        for span in self.spans:
            if span.image < len(lengths):
                lengths[span.image] += span.length
        if lengths != [len(rows) for rows in images] or sum(lengths) != self.num_visual:
            raise VlmExportError(
                f"the prompt has {self.num_visual} places for visual tokens, the images have {sum(map(len, images))}",
                "make the prompt for the images that it is answered with",
            )
        for chunk in self.chunks():
            if isinstance(chunk, Span):
                start = used[chunk.image]
                used[chunk.image] = start + chunk.length
                yield images[chunk.image][start : start + chunk.length]
            else:
                yield chunk

    def visual(self, tokens: Iterable[Any]) -> list[Any]:
        """Visual tokens [length of the span, hidden] of each span; arguments and errors as in ``parts``."""
        return [part for part in self.parts(tokens) if not isinstance(part, tuple)]

    def room(self, context: int, who: str = "the prompt") -> int:
        """Most tokens of an answer: the context ends both, in the float model and in every runtime. The last token of
        an answer takes no position, so a prompt that fills the context still has one.

        Args:
            context: positions of the language model.
            who: whose prompt it is, for the message.

        Raises:
            UsageError: the prompt alone is longer.
        """
        length, visual = len(self.ids), self.num_visual
        if length > context:
            images = "image" if len({span.image for span in self.spans}) == 1 else "images"
            raise UsageError(
                f"{who} is {length} tokens long ({length - visual} of text, {visual} of the {images}), "
                f"the model's context is {context}",
                "ask a shorter question",
            )
        return context - length + 1


def joined(text: str, chunks: Sequence[Sequence[int]], images: Sequence[Views]) -> Prompt:
    """A prompt of chunks of ids with an image between each two of them."""
    ids: list[int] = []
    spans: list[Span] = []
    for number, (chunk, views) in enumerate(zip(chunks, [*images, Views(())], strict=True)):
        ids += chunk
        for view, (rows, columns) in enumerate(views.grids):
            spans.append(Span(len(ids), rows * columns, number, view, (rows, columns)))
            ids += [PLACEHOLDER] * (rows * columns)
    return Prompt(text, tuple(ids), tuple(spans))


def located(text: str, ids: Sequence[int], image_token: int, images: Sequence[Views]) -> Prompt:
    """A prompt of ids in which an image token stands for each visual token, view after view.

    Raises:
        CheckpointError: there are more of them or fewer, or other ids stand between those of one view.
    """
    places = [place for place, i in enumerate(ids) if i == image_token]
    spans, taken = [], 0
    for number, views in enumerate(images):
        for view, (rows, columns) in enumerate(views.grids):
            run = places[taken : taken + rows * columns]
            taken += rows * columns
            if run != list(range(run[0] if run else 0, (run[0] if run else 0) + rows * columns)):
                raise _misplaced(len(places), images)
            spans.append(Span(run[0], rows * columns, number, view, (rows, columns)))
    if taken != len(places):
        raise _misplaced(len(places), images)
    return Prompt(text, tuple(PLACEHOLDER if i == image_token else i for i in ids), tuple(spans))


def _misplaced(found: int, images: Sequence[Views]) -> CheckpointError:
    return CheckpointError(
        f"the prompt has {found} image tokens where the images have {sum(views.num_tokens for views in images)}",
        "use a tokenizer and a chat template that were published together",
    )
