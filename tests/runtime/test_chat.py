"""The prompt by a bundle's own template: the float model's, or an error that says what is wrong with the file."""

from __future__ import annotations

import pytest

from vlmexport.artifact.gguf import chat_template as gguf_template
from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import asked

MARKED = PromptSpec(image_start="<im_start>", image_end="<im_end>")


@pytest.mark.parametrize("prompt", [PromptSpec(), MARKED], ids=["plain", "marked"])
@pytest.mark.parametrize("question", ["What is it?", " two  spaces\n", "{{ x }} {% if %} 'q'", ""])
def test_gguf(prompt: PromptSpec, question: str) -> None:
    text = ChatTemplate(gguf_template.chat_template(prompt), "<__media__>", "x.gguf").render(asked(question)).text
    assert text == prompt.text(question)


def test_a_second_image() -> None:
    template = ChatTemplate(gguf_template.chat_template(PromptSpec()), "<__media__>", "x.gguf")
    for marker in ("<image>", "<__media__>"):
        with pytest.raises(UsageError, match=f"the question holds {marker}"):
            template.render(asked(f"and {marker}?"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "x.gguf holds no chat template"),
        ("{% if %}", "it is no template"),
        ("{{ messages[0]['content'] }}", "leaves the image out"),
        ("{{ raise_exception('no') }}", "cannot be rendered"),
    ],
)
def test_no_template(source: str | None, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        ChatTemplate(source, "<__media__>", "x.gguf").render(asked("What?"))
