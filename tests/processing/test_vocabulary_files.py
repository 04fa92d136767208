"""``vocab.json`` and ``merges.txt`` give the ids of transformers' own tokenizer of these files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.vocabularies import CHATML, write_byte_level, write_vocabulary
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.processing.fast_tokenizer import FastTokenizer, open_file
from vlmexport.processing.tokenizer_files import open_tokenizer

TEXTS = (
    "abc XYZ'sS'tTlLdD  \n\t\r.,!?", "0123456789 .,-+", "漢字你好，。 \n", "éñßÅÉ́̀ नमस्ते", "🙂❤️👩‍🇩🇪 x",
    "don't  I'LL chat",
    "{}()[];=+*/\"'\\# \n    def return", "\u00a0\u3000\u200b\u2028 \x00\x1f²½٣Ⅷ", "",
)  # fmt: skip


def opened(folder: Path, rows: int = 400) -> FastTokenizer:
    found = open_tokenizer(folder, rows)
    assert isinstance(found, FastTokenizer)
    return found


@pytest.mark.parametrize("name", ["qwen2", "gpt-2"])
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    write_vocabulary(tmp_path, name)
    ours, theirs, choose = opened(tmp_path), AutoTokenizer.from_pretrained(tmp_path), random.Random(name)
    letters = "".join(TEXTS)
    for text in (*TEXTS, *("".join(choose.choices(letters, k=choose.randrange(40))) for _ in range(200))):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    template = f"{CHATML[1]}user\nwhat?{CHATML[2]}\n"
    assert ours.encode(template, special=True) == theirs(template, add_special_tokens=False)["input_ids"]
    assert ours.encode(template) != ours.encode(template, special=True)


def test_it_is_the_tokenizer_json_of_the_same_encoding(tmp_path: Path) -> None:
    """A bundle carries it, and every client of that file has the same ids."""
    write_byte_level(tmp_path / "json")
    write_vocabulary(tmp_path / "files", "qwen2")
    one, other = opened(tmp_path / "json"), opened(tmp_path / "files")
    assert (one.vocabulary, one.merges, one.special) == (other.vocabulary, other.merges, other.special)
    for token in ("<image>", CHATML[1]):
        (tmp_path / "tokenizer.json").write_text(other.with_token(token, other.added.get(token, 399)), encoding="utf-8")
        file, library = open_file(tmp_path / "tokenizer.json"), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for text in TEXTS:
            assert file.encode(text) == other.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert library.token_to_id(token) == file.added[token]
        assert {text: file.added[text] for text in CHATML} == other.added


def test_what_is_damaged_or_not_known_is_said(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, "qwen2")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "BartTokenizer"}))
    with pytest.raises(Unsupported, match=r"'BartTokenizer' of vocab\.json .* is not known: save it once more"):
        opened(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na nothing\n")
    with pytest.raises(CheckpointError, match="contradict each other"):
        opened(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"merges\.txt cannot be read"):
        opened(tmp_path)
