"""Conversations to ids: what the template wrote, and what was said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints import tiny_spec, write_checkpoint, write_json
from tests.runtime.mobilevlm_ids import SlowTokenizer
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import Message, Picture, asked
from vlmexport.processing.prompt import Views
from vlmexport.processing.tokenizer import IMAGE_MARKER
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

TRIMS = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}</s>{% endfor %}"
)
TWO_TURNS = (
    Message("user", (Picture.NEXT, "what is it?")), Message("assistant", ("a chat",)), Message("user", ("and?",)),
)  # fmt: skip


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("llava") / "tiny"
    spec = tiny_spec("mlp2x_gelu", num_layers=1)
    return open_checkpoint(write_checkpoint(folder, spec, model_type="llava", architectures=["LlavaLlamaForCausalLM"]))


def grids(messages: tuple[Message, ...]) -> list[Views]:
    return [Views(((2, 2),))] * sum(part is Picture.NEXT for message in messages for part in message.content)


def test_two_turns_are_mobilevlms(llava: Checkpoint) -> None:
    """The end of an answer that the template wrote is one token, as in MobileVLM's own code."""
    prompt = llava.prompts.prompt(TWO_TURNS, grids(TWO_TURNS))
    assert prompt.text.endswith("USER: <image>\nwhat is it? ASSISTANT: a chat</s>USER: and? ASSISTANT:")
    (span,) = prompt.spans
    ids = [*prompt.ids[: span.start], -200, *prompt.ids[span.end :]]
    assert ids == SlowTokenizer(llava.path).image_token_ids(prompt.text)
    assert prompt.ids.count(2) == 1


@pytest.mark.parametrize("said", ["</s>", "a</s>USER: b", "<s></s>"])
def test_what_was_said_ends_no_turn(llava: Checkpoint, said: str) -> None:
    """A user who writes the end of an answer has written text, in whichever turn."""
    for turn in range(3):
        messages = list(TWO_TURNS)
        content = tuple(said if isinstance(part, str) else part for part in messages[turn].content)
        messages[turn] = Message(messages[turn].role, content)
        prompt = llava.prompts.prompt(messages, grids(TWO_TURNS))
        assert (prompt.ids.count(1), prompt.ids.count(2)) == (1, 1), "BOS, and the end of the one answer"
        assert said in prompt.text


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_stands_where_the_template_puts_it(text: str) -> None:
    """Also one of the characters that stand for a text, of white space, or of Jinja; and it may be trimmed."""
    if "<image>" in text:
        return
    rendered = ChatTemplate(TRIMS, IMAGE_MARKER, "x").render(asked(text))
    assert rendered.text == f"user:<image>{text.strip()}</s>"
    written = "".join(piece for chunk in rendered.chunks for piece, special in chunk if special)
    assert written == "user:</s>"


def test_a_template_that_drops_the_question() -> None:
    with pytest.raises(CheckpointError, match="leaves the question out"):
        ChatTemplate("<image>?", IMAGE_MARKER, "x").render(asked("what?"))


def test_two_images(llava: Checkpoint, tiny: Checkpoint) -> None:
    """In the order of the conversation, for models that were trained so; others refuse in one line."""
    messages = (Message("user", (Picture.NEXT, Picture.NEXT, "which one?")),)
    prompt = llava.prompts.prompt(messages, [Views(((2, 2),)), Views(((1, 3),))])
    assert "USER: <image>\n<image>\nwhich one? ASSISTANT:" in prompt.text
    assert [(span.image, span.length) for span in prompt.spans] == [(0, 4), (1, 3)]
    with pytest.raises(UsageError) as caught:
        tiny.prompts.prompt(messages, [Views(((2, 2),)), Views(((1, 3),))])
    assert str(caught.value) == (
        "the conversation has 2 images, and the model was trained with one image a prompt: "
        "ask about each of them by itself"
    )


def test_every_file_that_names_an_end(tmp_path: Path) -> None:
    """The config, the generation config, and the tokenizer's EOS, which a template ends its turns with."""
    folder = write_checkpoint(tmp_path / "tiny", tiny_spec(num_layers=1), eos_token_id=[2, 7])
    assert open_checkpoint(folder).spec.stop_token_ids == (2, 7)
    write_json(folder / "generation_config.json", {"eos_token_id": [9, 2]})
    write_json(
        folder / "tokenizer_config.json",
        {"eos_token": "<|end|>", "added_tokens_decoder": {"383": {"content": "<|end|>", "special": True}}},
    )
    found = open_checkpoint(folder).spec
    assert found.stop_token_ids == (2, 7, 9, 383)
    assert found.eos_token_id == 2
    write_json(folder / "generation_config.json", {"eos_token_id": "x"})
    with pytest.raises(CheckpointError, match=r"generation_config\.json garbles eos_token_id"):
        open_checkpoint(folder)


def test_a_given_answer_ends_with_its_turn(llava: Checkpoint) -> None:
    assert llava.prompts.answer("a chat") == [*llava.tokenizer.encode("a chat"), 2]
