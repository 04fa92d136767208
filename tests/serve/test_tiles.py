"""The page with a model that sees tiles: transformers.js answers as transformers does with Pillow's pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.onnx_bundles import picture
from tests.serve.browser import ask, begin, loaded, show
from tests.smolvlm import PICTURES, TOKENS, asked_of
from tests.smolvlm_bundle import ANSWER, Built
from vlmexport.processing.messages import Message, Picture

pytestmark = pytest.mark.slow

VIEWS = (13, 17, 5)
LINES = re.compile(r"M0 73\.3\d*H300M0 146\.6\d*H300M75 0V220M150 0V220M225 0V220")
"""Between 3x4 tiles of a picture of 300x220."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that are all enlarged."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, size in enumerate(PICTURES):
        picture(seed, size).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


def expected(built: Built, messages: list[Message], files: list[Path]) -> tuple[list[int], int]:
    """Token ids of transformers' answer, and the length of the prompt."""
    model, processor, _ = built
    inputs: Any = asked_of(processor, messages, [Image.open(file) for file in files])
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return found[0, length:].tolist(), length


def test_a_conversation_about_pictures_that_become_tiles(
    chromium: Browser, tiny_smolvlm: Built, transformers_js: Path, files: list[Path]
) -> None:
    answers = []
    with loaded(chromium, tiny_smolvlm[2], transformers_js) as page:
        for file, views in zip(files, VIEWS, strict=True):
            begin(page)
            show(page, file, views * TOKENS)
            messages = [Message("user", (Picture.NEXT, "What is in it?"))]
            answers.append(assert_answer(page, tiny_smolvlm, messages, [file]))
        show(page, files[0], VIEWS[0] * TOKENS)
        expect(page.locator("#seen")).to_contain_text("3 × 4 tiles and all of it")
        expect(page.locator("#grid path")).to_have_attribute("d", LINES)
        said = page.locator("article .answer").last.text_content() or ""
        messages += [Message("assistant", (said,)), Message("user", (Picture.NEXT, "And here?"))]
        answers.append(assert_answer(page, tiny_smolvlm, messages, [files[-1], files[0]]))
    assert len(set(map(tuple, answers))) == len(answers)  # they depend on picture and conversation


def assert_answer(page: Page, built: Built, messages: list[Message], files: list[Path]) -> list[int]:
    """Ask the last message: the same tokens come, after the same prompt."""
    ids, length = expected(built, messages, files)
    assert ask(page, messages[-1].text)[1] == ids
    assert page.locator("summary").last.inner_text() == f"{len(ids)} tokens, after a prompt of {length}"
    return ids
