"""Tokenizers: which file is read, added tokens, image marks, padded vocabularies, ``tokenizer.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaTokenizer

from tests.checkpoints import write_json, write_tokenizer
from tests.prompts import texts, tokenized
from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.processing.tokenizer import Tokenizer
from vlmexport.processing.tokenizer_files import open_tokenizer

MARKED = PromptSpec(image_start="<im_start>", image_end="<im_end>")
MARKS = {"<im_start>": 384, "<im_end>": 385, "<im_patch>": 386}
TEXT = st.one_of(st.text(max_size=40), st.text("abchtserUSR: \n?é漢<s>/unk", max_size=40))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.model alone."""
    folder = tmp_path_factory.mktemp("source")
    write_tokenizer(folder, 384)
    return folder


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json alone, as transformers saves it."""
    folder = tmp_path_factory.mktemp("alone")
    LlamaTokenizer.from_pretrained(source).save_pretrained(folder)
    assert not (folder / "tokenizer.model").exists()
    return folder


@pytest.fixture
def legacy(alone: Path, tmp_path: Path) -> Path:
    """The same in the older form, with a normalizer that puts a space before each part of a text."""
    document = json.loads((alone / "tokenizer.json").read_text())
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    document |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]
    write_json(tmp_path / "tokenizer.json", document)
    return tmp_path


@given(text=TEXT)
def test_json_alone_gives_the_same_ids(source: Path, alone: Path, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode().lstrip(" ▁").replace("▁", "")
    expected = TOKENIZERS.setdefault("model", open_tokenizer(source, 384))
    found = TOKENIZERS.setdefault("json", open_tokenizer(alone, 384))
    ids = found.encode(text)
    assert ids == expected.encode(text)
    assert SentencePieceTokenizer.encode_plain(found, text) == ids, "pieces and scores"
    assert found.decode(ids) == expected.decode(ids)


TOKENIZERS: dict[str, Tokenizer] = {}


def test_json_has_the_models_pieces_in_the_models_order(source: Path, alone: Path) -> None:
    expected, found = open_tokenizer(source, 384), open_tokenizer(alone, 384)
    assert (found.kind, expected.kind) == ("tokenizer.json", "tokenizer.model")
    assert [(p.text, p.kind) for p in found.pieces()] == [(p.text, p.kind) for p in expected.pieces()]
    assert (found.bos_token_id, found.eos_token_id, len(found)) == (1, 2, 384)
    assert found.begins_with_space
    order = [p.text for p in sorted(found.pieces(), key=lambda p: -p.score) if p.kind == "normal" and len(p.text) > 1]
    want = [p.text for p in sorted(expected.pieces(), key=lambda p: -p.score) if p.kind == "normal" and len(p.text) > 1]
    assert order == want


@pytest.mark.parametrize("kind", ["model", "json"])
def test_image_marks(kind: str, source: Path, legacy: Path) -> None:
    folder = legacy
    if kind == "model":
        write_tokenizer(folder, 384)
    write_json(folder / "added_tokens.json", MARKS)
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": list(MARKS)})
    tokenizer = open_tokenizer(folder, 387, MARKED)
    assert tokenizer.kind == f"tokenizer.{kind}"
    prompt = tokenized(tokenizer, MARKED, "what is it?")
    assert prompt.text.endswith("USER: <im_start><image><im_end>\nwhat is it? ASSISTANT:")
    plain = tokenized(open_tokenizer(source, 384), PromptSpec(), "what is it?")
    before, after = texts(plain)
    assert texts(prompt) == ((*before, 384), (385, *after))
    assert 386 not in tokenizer.encode("<im_patch>"), "special tokens are plain text"
    assert tokenizer.decode([*after, 384, *tokenizer.encode("a chat")]).endswith("<im_start> a chat")


def test_marks_without_tokens(source: Path) -> None:
    with pytest.raises(CheckpointError, match="the prompt needs <im_end>"):
        open_tokenizer(source, 384, MARKED)


def test_added_tokens_of_every_file(source: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 384)
    write_json(tmp_path / "added_tokens.json", {"<box>": 384})
    decoder = {
        "1": {"content": "<s>", "special": True},
        "384": {"content": "<box>", "special": False},
        "385": {"content": "<pad>", "special": True},
    }
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "bos_token": "<s>"})
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": {"content": "<pad>"}})
    tokenizer = open_tokenizer(tmp_path, 448, image_token=386)
    assert tokenizer.added == {"<box>": 384, "<pad>": 385, "<image>": 386}
    assert {"<pad>", "<image>", "<s>"} <= tokenizer.special
    assert "<box>" not in tokenizer.special
    plain = open_tokenizer(source, 384)
    assert tokenizer.encode("a <box>chat") == [*plain.encode("a "), 384, *plain.encode("chat")]
    assert 385 not in tokenizer.encode("a <pad> b")
    with pytest.raises(CheckpointError, match=r"<image> is 390 in config\.json, 386 for the tokenizer"):
        write_json(tmp_path / "added_tokens.json", {"<image>": 386})
        open_tokenizer(tmp_path, 448, image_token=390)
    for wrong in (448, -200, "386"):
        with pytest.raises(CheckpointError, match=f"<image> is {wrong}, the embedding has 448 rows"):
            open_tokenizer(tmp_path, 448, image_token=wrong)  # type: ignore[arg-type]


def test_tokens_beyond_the_rows_are_plain_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 384)
    write_json(tmp_path / "added_tokens.json", {"[PAD]": 384})
    assert 384 not in open_tokenizer(tmp_path, 384).encode("[PAD]")
    assert 384 in open_tokenizer(tmp_path, 385).encode("[PAD]")
    write_json(tmp_path / "added_tokens.json", {"[PAD]": 10**15})
    assert len(open_tokenizer(tmp_path, 385)) == 384


@pytest.mark.parametrize("entry", [5, None, ["<box>"]])
def test_garbled_lists_of_added_tokens(entry: Any, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 384)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"384": entry}})
    with pytest.raises(CheckpointError, match="an added token is"):
        open_tokenizer(tmp_path, 448)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": [entry]})
    with pytest.raises(CheckpointError, match="added_tokens_decoder is not a JSON object"):
        open_tokenizer(tmp_path, 448)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ({"<box>": 300}, "300 is .*, an added token says '<box>'"),
        ({"<box>": "x"}, "added token '<box>' has the id 'x'"),
        ({"<s>": 400}, "'<s>' has the ids 400 and 1"),
        ({"<box>": 400, "<ref>": 400}, "two added tokens have the same id"),
    ],
)
def test_contradictions(added: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 384)
    write_json(tmp_path / "added_tokens.json", added)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "<s>"}}})
    with pytest.raises(CheckpointError, match=reason):
        open_tokenizer(tmp_path, 448)


def test_more_pieces_than_rows(source: Path, alone: Path) -> None:
    for folder in (source, alone):
        with pytest.raises(CheckpointError, match="has 384 pieces, the embedding only 300 rows"):
            open_tokenizer(folder, 300)


def test_other_kinds_of_json(alone: Path, tmp_path: Path) -> None:
    document = json.loads((alone / "tokenizer.json").read_text())
    for changes, reason in (
        ({"type": "Unigram"}, "is no byte-pair encoding"),
        ({"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 9}, "merges": []}, "has holes"),
        ({"merges": [["never", "there"]]}, "is no tokenizer.json"),
        ({"merges": []}, "gives ids that no scores of pieces give"),
    ):
        write_json(tmp_path / "tokenizer.json", document | {"model": document["model"] | changes})
        with pytest.raises((Unsupported, CheckpointError), match=reason):
            open_tokenizer(tmp_path, 384)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_tokenizer(tmp_path, 384)


def test_a_mark_that_would_be_cut_otherwise_is_refused(alone: Path, tmp_path: Path) -> None:
    """Newer files put the space only before a whole text, llama.cpp before each part of it."""
    (tmp_path / "tokenizer.json").write_text((alone / "tokenizer.json").read_text())
    write_json(tmp_path / "added_tokens.json", MARKS)
    with pytest.raises(Unsupported, match=r"cuts a text at <im_.*copy tokenizer\.model"):
        open_tokenizer(tmp_path, 387, MARKED)
