"""Prompts token for token: MobileVLM's ``tokenizer_image_token``, ours, and llama.cpp's in two clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlamaTokenizer

from tests.checkpoints import tiny_spec, write_checkpoint, write_json
from tests.gguf_bundles import export
from tests.prompts import ask, tokenized, with_image
from tests.runtime.gguf_clients import IMAGE_TOKEN, LlamaCppPython, Server, serve, user
from tests.runtime.mobilevlm_ids import SlowTokenizer
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.errors import UsageError
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

MARKER, SQUARE = "<__media__>", Image.new("RGB", (32, 32))
ADDED = ("<box>", "[ref 1]")
QUESTIONS = [
    "What is it?", "", " ", " a leading space", "  two", "\nnewline first", "\n", "trailing space ", "tab\tand\r\nline",
    "🙂", "👩‍👩‍👧 family", "这是什么？", "日本語 と English", "é é", "▁ underline", "a<box>b", " <box> chat <box>",
    "[ref 1]",
    "<box>", "a < b > c", "__> <__ <|im_end|> [INST] {{ x }}", "USER: ASSISTANT:", "x" * 300, "\x01 \u200b\ufeff",
]  # fmt: skip
"""Questions that tokenizers and templates get wrong."""
PROMPTS = [
    "<image>", "<image><image>", "a<image>b", "a <image> b", " <image> ", "<image>\n<image>\ncompare them",
    "look at <image>, please", "\n<image>\n", "<image>🙂<image>漢<image>", "no image", "", "<box><image><box>",
]  # fmt: skip
"""Whole prompts with images in any place."""
TEXT = st.one_of(st.text(max_size=40), st.text("abchtserUSR: \n?é漢<>box/[1]ref", max_size=40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny MobileVLM V2 with two added tokens and rows to spare."""
    folder = tmp_path_factory.mktemp("prompts") / "tiny"
    write_checkpoint(folder, tiny_spec(num_layers=1, vocab_size=400), pieces=384)
    write_json(folder / "added_tokens.json", {text: 384 + i for i, text in enumerate(ADDED)})
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def mobilevlm(checkpoint: Checkpoint) -> SlowTokenizer:
    return SlowTokenizer(checkpoint.path, *ADDED)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.path.parent / "q8_0"
    export(checkpoint, folder, type="q8_0")
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[LlamaCppPython]:
    with closing(LlamaCppPython(bundle)) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    with serve(bundle) as running:
        yield running


@pytest.fixture(scope="module")
def runtime(bundle: Path) -> Iterator[Joined]:
    with closing(join(LlamaCppHalves(bundle, read_manifest(bundle)))) as opened:
        yield opened


def ours(checkpoint: Checkpoint, prompt: str) -> list[int]:
    """Our own tokenizer's ids, ``IMAGE_TOKEN`` between the chunks."""
    first, *others = checkpoint.tokenizer.chunks([[(text, False)] for text in prompt.split("<image>")])
    return [*first, *chain.from_iterable([IMAGE_TOKEN, *other] for other in others)]


@pytest.mark.parametrize("prompt", PROMPTS + [PromptSpec().text(question) for question in QUESTIONS])
def test_difficult_prompts(
    prompt: str, mobilevlm: SlowTokenizer, checkpoint: Checkpoint, client: LlamaCppPython
) -> None:
    expected = mobilevlm.image_token_ids(prompt)
    assert ours(checkpoint, prompt) == expected
    assert client.ids(prompt.replace("<image>", MARKER), [SQUARE] * prompt.count("<image>")) == expected


@settings(deadline=None)
@given(prompt=TEXT)
def test_any_prompt(prompt: str, mobilevlm: SlowTokenizer, checkpoint: Checkpoint, client: LlamaCppPython) -> None:
    prompt = prompt.replace("<__media", "")
    assume(
        not any(special in prompt for special in ("<s>", "</s>", "<unk>"))
    )  # text to us: see test_special_tokens_in_a_question
    expected = mobilevlm.image_token_ids(prompt)
    assert ours(checkpoint, prompt) == expected
    assert client.ids(prompt.replace("<image>", MARKER), [SQUARE] * prompt.count("<image>")) == expected


@pytest.mark.parametrize("question", QUESTIONS)
def test_runtimes(question: str, mobilevlm: SlowTokenizer, checkpoint: Checkpoint, runtime: Joined) -> None:
    expected = mobilevlm.image_token_ids(PromptSpec().text(question))
    for prompt in (tokenized(checkpoint.tokenizer, PromptSpec(), question), ask(runtime, question)):
        assert with_image(prompt, IMAGE_TOKEN) == expected


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("image_first", [True, False])
def test_server(question: str, image_first: bool, mobilevlm: SlowTokenizer, server: Server) -> None:
    """The embedded template by llama.cpp's own engine, whichever part of the message the client puts first."""
    image = Image.new("RGB", (8, 8))
    messages = user(image, question) if image_first else user(question, image)
    prompt = server.post("/apply-template", messages=messages)["prompt"]
    marker = server.get("/props")["media_marker"]
    assert prompt == PromptSpec().text(question).replace("<image>", marker)
    assert server.ids(prompt, marker) == mobilevlm.image_token_ids(PromptSpec().text(question))


def test_server_with_images_between_texts(mobilevlm: SlowTokenizer, server: Server) -> None:
    image = Image.new("RGB", (8, 8))
    marker = server.get("/props")["media_marker"]
    for parts, inside in (
        (("look at ", image, ", please"), "look at <image>\n, please"),
        ((image, image, "compare"), "<image>\n<image>\ncompare"),
        (("compare", image, image), "<image>\n<image>\ncompare"),
        (("one", image, "two", image), "one<image>\ntwo<image>\n"),
    ):
        prompt = server.post("/apply-template", messages=user(*parts))["prompt"]
        expected = f"{PromptSpec().system} USER: {inside} ASSISTANT:"
        assert prompt == expected.replace("<image>", marker)
        assert server.ids(prompt, marker) == mobilevlm.image_token_ids(expected)


def test_special_tokens_in_a_question(mobilevlm: SlowTokenizer, checkpoint: Checkpoint, client: LlamaCppPython) -> None:
    """MobileVLM and llama.cpp read ``</s>`` as the end of an answer, wherever it stands; our own runtimes as text."""
    prompt = "USER: One? ASSISTANT: Yes.</s>USER: Two? ASSISTANT:"
    expected = mobilevlm.image_token_ids(prompt)
    assert 2 in expected
    assert client.ids(prompt, []) == expected
    assert 2 not in ours(checkpoint, prompt)


def test_transformers_of_today(checkpoint: Checkpoint, mobilevlm: SlowTokenizer) -> None:
    """transformers 5 agrees, but for a chunk that begins with a space: the slow tokenizer puts its own before it."""
    fast = LlamaTokenizer.from_pretrained(checkpoint.path)
    for prompt in PROMPTS + QUESTIONS:
        for chunk in prompt.split("<image>"):
            if not chunk.startswith((" ", "▁")) and not any(text in chunk for text in ADDED):
                assert fast(chunk, add_special_tokens=False).input_ids == mobilevlm.encode(chunk)[1:]
    assert fast(" x", add_special_tokens=False).input_ids != mobilevlm.encode(" x")[1:]


def test_a_second_image_is_refused(checkpoint: Checkpoint, runtime: Joined) -> None:
    question = "What is <image>?"
    for prompt in (lambda: ask(runtime, question), lambda: tokenized(checkpoint.tokenizer, PromptSpec(), question)):
        with pytest.raises(UsageError, match="holds <image>, and there is only one image"):
            prompt()
