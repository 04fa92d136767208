"""The chat template in Python's Jinja, as llama-cpp-python runs it. llama.cpp's: tests/runtime/test_prompt_ids.py."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmexport.artifact.gguf.chat_template import chat_template
from vlmexport.checkpoint.spec import PromptSpec

QUESTION = "What is it?"
SERVER = "<__media_x7__>"
MARKED = PromptSpec(image_start="<im_start>", image_end="<im_end>")
TEXT = st.one_of(st.text(max_size=30), st.text("ab \n'\\{}%<>_image/s:USER🙂漢", max_size=30)).filter(
    lambda text: "<__media" not in text and "<image>" not in text
)


@cache
def compiled(prompt: PromptSpec) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(chat_template(prompt))


def render(messages: list[dict[str, Any]], prompt: PromptSpec | None = None, generate: bool = True) -> str:
    template = compiled(prompt or PromptSpec())
    return template.render(messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="")


def ask(content: Any, prompt: PromptSpec | None = None) -> str:
    return render([{"role": "user", "content": content}], prompt)


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def contents(question: str, marker: str) -> list[Any]:
    """One image and a question, as clients hand them over."""
    images: list[dict[str, Any]] = [{"type": kind, "text": marker} for kind in ("media_marker", "text", "image_url")]
    if marker == "<__media__>":
        images += [{"type": "image"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    typed = [parts for image in images for parts in ([image, text(question)], [text(question), image])]
    return [marker + question, question + marker, *typed]


@pytest.mark.parametrize("prompt", [PromptSpec(), MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize("marker", ["<__media__>", SERVER])
@settings(deadline=None)
@given(question=TEXT)
def test_every_form_is_mobilevlms_prompt(prompt: PromptSpec, marker: str, question: str) -> None:
    before, after = prompt.text(question).split("<image>")
    for content in contents(question, marker):
        assert ask(content, prompt) == before + marker + after


@settings(deadline=None)
@given(question=TEXT)
def test_without_an_image(question: str) -> None:
    assert ask(question) == ask([text(question)]) == f"{PromptSpec().system} USER: {question} ASSISTANT:"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("look at <I>, please", "look at <I>\n, please"),
        ("<I><I>compare", "<I>\n<I>\ncompare"),
        ("compare<I><I>", "<I>\n<I>\ncompare"),
        ("one <I> and two <I>", "one <I>\n and two <I>\n"),
        ("<I>\nWhat?", "<I>\n\nWhat?"),
        ("a <__media b", "a <__media b"),
        ("<I>a__>b", "<I>\na__>b"),
        ([text("look at"), text("<I>"), text("please")], "look at<I>\nplease"),
        ([text("<I>"), text("one"), text("two")], "<I>\none\ntwo"),
        ([], ""),
        (None, ""),
    ],
)
def test_where_images_and_line_breaks_go(content: Any, expected: str) -> None:
    if isinstance(content, list):
        content = [part | {"text": part["text"].replace("<I>", SERVER)} for part in content]
    elif content:
        content = content.replace("<I>", SERVER)
    found = re.fullmatch(r".* USER: (.*) ASSISTANT:", ask(content), re.DOTALL)
    assert found is not None
    assert found[1] == expected.replace("<I>", SERVER)


def test_a_conversation() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<__media__>One?"},
        {"role": "assistant", "content": " Yes.\n"},
        {"role": "user", "content": [text("Two?")]},
    ]
    expected = "Be brief. USER: <__media__>\nOne? ASSISTANT: Yes.</s>USER: Two? ASSISTANT:"
    assert render(messages) == expected
    assert render(messages[:3], generate=False) == "Be brief. USER: <__media__>\nOne? ASSISTANT: Yes.</s>"
    messages[2]["content"] = None
    assert "ASSISTANT: </s>USER:" in render(messages)


def test_texts_with_quotes() -> None:
    prompt = PromptSpec(system="It's a \\ 'test'\nof two lines.")
    assert ask("<__media__>x", prompt).startswith("It's a \\ 'test'\nof two lines. USER: <__media__>\nx")
