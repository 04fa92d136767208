"""Spans of a prompt: where the placeholders are, and what is cut at them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmexport.errors import UsageError, VlmExportError
from vlmexport.processing.prompt import PLACEHOLDER, Prompt, Span, Views, joined

IDS = st.lists(st.integers(0, 9), max_size=6)
GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3).map(tuple).map(Views)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Prompt, list[list[int]], list[Views]]:
    """A prompt, the chunks and the images that it is made of."""
    images = draw(st.lists(GRIDS, max_size=3))
    chunks = [draw(IDS) for _ in range(len(images) + 1)]
    return joined("", chunks, images), chunks, images


@given(made=prompts())
def test_ids_cut_at_spans_are_the_ids(made: tuple[Prompt, list[list[int]], list[Views]]) -> None:
    prompt, chunks, images = made
    parts = list(prompt.chunks())
    whole = [i for part in parts for i in ([PLACEHOLDER] * part.length if isinstance(part, Span) else part)]
    assert tuple(whole) == prompt.ids
    assert tuple(part for part in parts if isinstance(part, Span)) == prompt.spans
    assert [i for i in prompt.ids if i != PLACEHOLDER] == [i for chunk in chunks for i in chunk]
    assert [(span.image, span.view, span.grid) for span in prompt.spans] == [
        (number, view, grid) for number, views in enumerate(images) for view, grid in enumerate(views.grids)
    ]


@given(made=prompts(), answer=IDS)
def test_placeholders_are_as_many_as_the_lengths_say(
    made: tuple[Prompt, list[list[int]], list[Views]], answer: list[int]
) -> None:
    prompt = made[0]
    for one in (prompt, prompt.answered(answer)):
        assert one.num_visual == one.ids.count(PLACEHOLDER) == one.is_image.sum()
        assert [i == PLACEHOLDER for i in one.ids] == one.is_image.tolist()
    assert prompt.answered(answer).ids == (*prompt.ids, *answer)


@given(made=prompts())
def test_visual_tokens_go_where_their_view_is(made: tuple[Prompt, list[list[int]], list[Views]]) -> None:
    """Each row tells its image and its place in it: put in, they stand in that order."""
    prompt, _, images = made
    counts = [views.num_tokens for views in images]
    tokens = [np.stack([np.full(count, number), np.arange(count)], 1) for number, count in enumerate(counts)]
    visual = prompt.visual(tokens)
    assert [len(rows) for rows in visual] == [span.length for span in prompt.spans]
    np.testing.assert_array_equal(
        np.concatenate([*visual, np.empty((0, 2))]), np.concatenate([*tokens, np.empty((0, 2))])
    )
    texts = [part for part in prompt.parts(tokens) if isinstance(part, tuple)]
    assert texts == [part for part in prompt.chunks() if isinstance(part, tuple)]


@given(made=prompts(), context=st.integers(1, 60))
def test_room(made: tuple[Prompt, list[list[int]], list[Views]], context: int) -> None:
    prompt = made[0]
    if len(prompt.ids) <= context:
        assert len(prompt.ids) + prompt.room(context) == context + 1
    else:
        with pytest.raises(UsageError, match=f"{len(prompt.ids)} tokens long .* context is {context}"):
            prompt.room(context)


@pytest.mark.parametrize("counts", [[3, 4], [4], [4, 4, 4], [8], []])
def test_other_visual_tokens_than_placeholders(counts: list[int]) -> None:
    """Too few, too many, or in total as many, of other images."""
    prompt = joined("", [[1], [2], [3]], [Views(((1, 4),))] * 2)
    with pytest.raises(VlmExportError, match="the prompt has 8 places for visual tokens"):
        prompt.visual([np.zeros((count, 2)) for count in counts])
