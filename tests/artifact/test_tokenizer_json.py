"""``tokenizer.json`` against SentencePiece, on text that Hypothesis makes up."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.prompts import tokenized, with_image
from vlmexport.artifact.onnx.tokenizer_file import build, content, encode, image_token_id
from vlmexport.errors import Unsupported
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer as SentencePiece
from vlmexport.source.checkpoint import Checkpoint

PARTS = ["chat", "curious", "USER:", " ", "  ", "<s>", "</s>", "<image>", "\n", "a"]
TEXT = st.one_of(
    st.text(max_size=40),
    st.text("abchtserUSR: \n?▁é漢<s>/unk", max_size=40),
    st.lists(st.sampled_from(PARTS)).map("".join),
)


@pytest.fixture(scope="module")
def built(tiny: Checkpoint) -> Tokenizer:
    return build(tiny.tokenizer, image_token_id(tiny))


@given(text=TEXT)
def test_ids_equal_sentencepiece(built: Tokenizer, tiny: Checkpoint, text: str) -> None:
    # SentencePiece cannot hold lone surrogates; the chunks of a prompt hold no <image>.
    text = text.encode("utf-8", "ignore").decode().replace("<image>", "")
    assert encode(built, text) == tiny.tokenizer.encode(text)


@given(text=TEXT)
def test_text_comes_back(built: Tokenizer, tiny: Checkpoint, text: str) -> None:
    ids = tiny.tokenizer.encode(text.encode("utf-8", "ignore").decode())
    assert built.decode(ids).strip() == tiny.tokenizer.decode(ids).strip()


def test_the_image_splits_chunks(built: Tokenizer, tiny: Checkpoint) -> None:
    built.encode_special_tokens = False
    image = image_token_id(tiny)
    prompt = tokenized(tiny.tokenizer, tiny.spec.prompt, "what is the image ?")
    assert built.encode(prompt.text).ids == with_image(prompt, image)
    assert built.token_to_id("<image>") == image == 384


def test_ids_without_a_piece_get_a_name(tiny: Checkpoint) -> None:
    """A vocabulary larger than the SentencePiece model: ``<image>`` comes after both."""
    language = replace(tiny.spec.language, vocab_size=400)
    larger = replace(tiny, spec=replace(tiny.spec, language=language))
    built = build(larger.tokenizer, image_token_id(larger))
    assert built.token_to_id("<image>") == 400
    assert built.id_to_token(390) == "<unused_390>"
    added = SentencePiece(tiny.tokenizer.path, {"[PAD]": 384})
    larger.__dict__["tokenizer"] = added
    assert build(added, image_token_id(larger)).token_to_id("[PAD]") == 384


def test_unigram_is_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentences = [f"word{i} and word{i + 1} make a sentence" for i in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, model_type="unigram", minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(Unsupported, match="no BPE"):
        content(replace(tiny, path=tmp_path, tokenizer_folder=tmp_path))
