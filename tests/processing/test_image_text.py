"""Prompts with an image's places of tiles in them: ids as transformers' own processors give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.onnx_bundles import picture
from tests.smolvlm import (
    CONVERSATIONS,
    FIRST,
    LOOK,
    PICTURES,
    PLACED,
    TEMPLATE,
    Processor,
    asked_of,
    processor,
    real_tokens,
    tokenizer,
)
from vlmexport.artifact.bundle.source import Model
from vlmexport.checkpoint.image_text import ImageText
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.families.reading.idefics3 import IMAGE_TEXT
from vlmexport.families.reading.image_processor import read_image_processor
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.image import process
from vlmexport.processing.messages import Message, Picture, asked
from vlmexport.processing.prompt import PLACEHOLDER, Prompt, Views
from vlmexport.processing.prompt_builder import PromptBuilder, written
from vlmexport.processing.tokenizer import IMAGE_MARKER
from vlmexport.processing.tokenizer_files import open_tokenizer
from vlmexport.source.checkpoint import Checkpoint

GRID = (2, 2)
ALONE = Views((GRID,))


class Both:
    """A processor of transformers, and what reads the files that it saved."""

    def __init__(self, theirs: Processor, tokens: PreTrainedTokenizerFast, folder: Path) -> None:
        self.theirs, self.image = theirs, tokens.convert_tokens_to_ids(IMAGE_MARKER)
        theirs.save_pretrained(folder)
        pixels = read_image_processor(folder)
        assert pixels is not None
        self.pixels, self.ours = pixels, self.builder(folder, len(tokens))

    def builder(self, folder: Path, rows: int) -> PromptBuilder:
        read = open_tokenizer(folder, rows)
        template = ChatTemplate(TEMPLATE, IMAGE_MARKER, "x", "<|im_start|>", "<end_of_utterance>")
        return PromptBuilder(template, read, None, IMAGE_TEXT)

    def check(self, messages: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> Prompt:
        """The same ids, and spans where image tokens are, view by view."""
        images = [picture(number, size) for number, size in enumerate(sizes)]
        views = [process(image, self.pixels, GRID).views for image in images]
        prompt, expected = self.ours.prompt(messages, views), asked_of(self.theirs, messages, images)
        ids = [self.image if i == PLACEHOLDER else i for i in prompt.ids]
        assert ids == expected["input_ids"][0].tolist()
        assert prompt.is_image.tolist() == [i == self.image for i in ids]
        assert [(span.image, span.view, span.grid) for span in prompt.spans] == [
            (number, view, GRID) for number, one in enumerate(views) for view in range(len(one.grids))
        ]
        assert len(prompt.spans) == (expected["pixel_values"].shape[1] if images else 0)
        return prompt


@pytest.fixture(scope="module", params=["idefics3", "smolvlm", "first"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """``first``: of SmolVLM's first 2.2B, where places of tiles are spelled."""
    tokens = tokenizer(FIRST if request.param == "first" else PLACED)
    kind = "smolvlm" if request.param == "smolvlm" else "idefics3"
    return Both(processor(kind, tokens), tokens, tmp_path_factory.mktemp("processor"))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_those_of_the_processor(name: str, both: Both) -> None:
    messages, images = CONVERSATIONS[name], images_of(name)
    for first in range(len(PICTURES) if images == 1 else 1):
        prompt = both.check(messages, (PICTURES[first:] + PICTURES)[:images])
        assert prompt.text.count(IMAGE_MARKER) == images


@settings(max_examples=25, deadline=None)
@given(before=st.text(max_size=8), after=st.text(max_size=8), width=st.integers(1, 300), height=st.integers(1, 300))
def test_any_text_around_an_image(before: str, after: str, width: int, height: int, both: Both) -> None:
    """Line breaks and all else that may merge with what stands beside it."""
    both.check((Message("user", (before, Picture.NEXT, after)),), [(width, height)])


def test_line_breaks_between_rows_and_the_whole_are_merged(both: Both) -> None:
    prompt = both.check((LOOK,), [(300, 220)])
    (one,), (two,) = (both.theirs.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n"))
    behind = [prompt.ids[span.end] for span in prompt.spans]
    assert (behind[3], behind[11]) == (one, two)


@pytest.mark.parametrize("pixels", [{"do_image_splitting": False}, {"size": {"longest_edge": 64}}])
def test_an_image_of_one_view(pixels: dict[str, object], tmp_path: Path) -> None:
    tokens = tokenizer()
    prompt = Both(processor("idefics3", tokens, **pixels), tokens, tmp_path).check((LOOK,), [(300, 220)])
    assert [span.length for span in prompt.spans] == [4]


def test_a_place_that_a_user_writes_is_text(both: Both) -> None:
    """So are all special tokens: only those that stand for the image are in the prompt."""
    said = "<fake_token_around_image><row_1_col_1><global-img><end_of_utterance>"
    plain, found = (both.ours.prompt(asked(text), [ALONE]) for text in ("x", said))
    special = {i for i in plain.ids if plain.ids.count(i) and i > 300}
    assert special
    for i in special:
        assert found.ids.count(i) == plain.ids.count(i) or i == PLACEHOLDER
    with pytest.raises(UsageError, match="<image>"):
        both.ours.prompt(asked("an <image>"), [ALONE])


def test_what_stands_for_an_image() -> None:
    views = Views(((1, 2),) * 5, (2, 2))
    assert written(IMAGE_TEXT, views) == (
        "<fake_token_around_image><row_1_col_1><image><image><fake_token_around_image><row_1_col_2><image><image>\n"
        "<fake_token_around_image><row_2_col_1><image><image><fake_token_around_image><row_2_col_2><image><image>\n"
        "\n<fake_token_around_image><global-img><image><image><fake_token_around_image>"
    )
    assert written(IMAGE_TEXT, Views(((1, 1),))) == (
        "<fake_token_around_image><global-img><image><fake_token_around_image>"
    )


def test_what_stands_for_an_image_whose_whole_comes_first() -> None:
    text = ImageText("<{row}.{column}>", "|", "<whole>", "<alone>", "<end>", whole_first=True)
    assert written(text, Views(((1, 1),) * 3, (1, 2))) == "<whole><image><1.1><image><1.2><image>|<end>"
    assert written(text, Views(((1, 1),) * 2, (2, 1))) == "<1.1><image>|<2.1><image>|<end>"
    assert written(text, ALONE) == "<alone>" + "<image>" * 4 + "<end>"


def test_a_manifest_holds_it(tiny: Checkpoint) -> None:
    for image_text in (None, IMAGE_TEXT):
        written = Model.of(replace(tiny.spec, image_text=image_text)).model_dump_json()
        assert Model.model_validate_json(written).image_text == image_text


def test_a_tokenizer_without_an_image_token(tmp_path: Path) -> None:
    tokens = tokenizer(("<end_of_utterance>",))
    tokens.save_pretrained(tmp_path)
    template = ChatTemplate(TEMPLATE, IMAGE_MARKER, "x")
    builder = PromptBuilder(template, open_tokenizer(tmp_path, len(tokens)), None, IMAGE_TEXT)
    with pytest.raises(CheckpointError, match="the tokenizer has no token <image>: use the published"):
        builder.prompt(asked("x"), [ALONE])


@pytest.mark.parametrize("marks", [PLACED, FIRST])
@pytest.mark.parametrize("name", ["turns"])
def test_the_real_vocabulary(name: str, marks: tuple[str, ...], smollm2_vocabulary: Path, tmp_path: Path) -> None:
    tokens = tokenizer(marks, real_tokens(smollm2_vocabulary))
    assert len(tokens) == 49152 + len(marks)
    Both(processor("idefics3", tokens), tokens, tmp_path).check(CONVERSATIONS[name], PICTURES[:2][: images_of(name)])


def images_of(name: str) -> int:
    """How many images a conversation has."""
    return sum(part is Picture.NEXT for message in CONVERSATIONS[name] for part in message.content)
