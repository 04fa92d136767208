"""Byte-level tokenizers in GGUF: libllama gives the ids of the checkpoint's own file, or the export is refused."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export
from tests.prompts import ask, texts, tokenized
from tests.smolvlm import PLACED, real_tokens
from tests.vocabularies import CHATML, REAL_CASES, byte_level, gguf_array, known_ids, write_byte_level, write_real
from vlmexport.artifact.gguf import byte_level as written
from vlmexport.artifact.gguf import vocabulary
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.tokenizer import fields as metadata
from vlmexport.artifact.onnx import client_files
from vlmexport.artifact.onnx.tokenizer_file import content, image_token_id
from vlmexport.errors import Unsupported
from vlmexport.processing.fast_tokenizer import FastTokenizer, open_file
from vlmexport.processing.tokenizer_files import open_tokenizer
from vlmexport.runtime.joined import join
from vlmexport.runtime.llamacpp.halves import LlamaCppHalves
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

RULES = ("gpt-2", "smollm", "qwen2", "qwen35", "llama-bpe", "dbrx")
ALPHABETS = (
    "abc XYZ'sS'tTlLdD  \n\t\r.,!?", "0123456789 .,-+", "漢字你好，。 \n", "éñßÅÉ́̀ नमस्ते", "🙂❤️👩‍🇩🇪 x",
    "<|im_start|>end_ \n", "{}()[];=+*/\"'\\# \n    def return", "\u00a0\u3000\u200b\u2028 \x00\x1f²½٣Ⅷ",
)  # fmt: skip


def opened(folder: Path, rows: int = 400) -> FastTokenizer:
    found = open_tokenizer(folder, rows)
    assert isinstance(found, FastTokenizer)
    return found


def file(tokenizer: FastTokenizer, rows: int = 400, **changes: Any) -> GgufFile:
    """The metadata that stand in the language model's file."""
    fields = written.fields(tokenizer, rows) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return GgufFile("tiny.gguf", "llama", fields, ())


@pytest.mark.parametrize("name", RULES)
def test_ids_of_random_texts(name: str, tmp_path: Path) -> None:
    """Those that libllama gives under the name that was chosen, for a template's texts and for a user's."""
    write_byte_level(tmp_path, name, defined=("<box>", "<|fim_prefix|>"))
    tokenizer, choose = opened(tmp_path), random.Random(name)
    assert written.pre(tokenizer.path, tokenizer.document) == name
    texts = ["".join(choose.choices(choose.choice(ALPHABETS), k=choose.randrange(40))) for _ in range(150)]
    parts = (*CHATML, "<box>", "<|fim_prefix|>", "a", " ", "\n", "<|")
    texts += ["".join(choose.choices(parts, k=8)) for _ in range(50)]
    asked = tuple((unicodedata.normalize("NFC", text), special) for text in texts for special in (True, False))
    found, _ = vocabulary._ask(file(tokenizer).header, asked, ())
    for (text, special), ids in zip(asked, found, strict=True):
        assert ids == tokenizer.encode(text, special), (text, special)


@pytest.mark.parametrize("name", REAL_CASES)
def test_real_vocabularies(name: str, real_vocabularies: Path, tmp_path: Path) -> None:
    """llama.cpp's own test texts give the ids that lie beside them, and the proof holds."""
    write_real(real_vocabularies, name, tmp_path)
    tokenizer = opened(tmp_path, rows := 152_000)
    made = file(tokenizer, rows)
    assert made.fields["tokenizer.ggml.pre"] == ("str", name)
    vocabulary.prove(tokenizer, made)
    texts = known_ids(real_vocabularies, name)
    asked = tuple((text, False) for text, _ in texts)
    assert vocabulary._ask(made.header, asked, ())[0] == [ids for _, ids in texts]


def test_the_vocabulary_of_smolvlm(smollm2_vocabulary: Path, tmp_path: Path) -> None:
    """SmolLM2's real one with SmolVLM's tokens behind it: the ids of Hugging Face's tokenizers, of a text and of a
    template with marks of tiles; and the arrays that llama.cpp's converter wrote for SmolLM2."""
    real = real_tokens(smollm2_vocabulary)
    real.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in PLACED])
    real.save(str(tmp_path / "tokenizer.json"))
    tokenizer = opened(tmp_path, 49_280)
    made, choose = file(tokenizer, 49_280), random.Random(0)
    assert made.fields["tokenizer.ggml.pre"] == ("str", "smollm")
    for key in ("tokens", "token_type", "merges"):
        held = made.fields[f"tokenizer.ggml.{key}"][1]
        assert held[:49_152] == gguf_array(smollm2_vocabulary.read_bytes(), key)[:49_152]
    vocabulary.prove(tokenizer, made)
    plain = [*vocabulary.TEXTS, *("".join(choose.choices(choose.choice(ALPHABETS), k=30)) for _ in range(100))]
    marked = "<fake_token_around_image><row_1_col_1><image><image>\n\n<global-img><end_of_utterance>\nAssistant:"
    asked = (*((unicodedata.normalize("NFC", text), False) for text in plain), (f"User: 3 {marked}", True))
    for (text, special), ids in zip(asked, vocabulary._ask(made.header, asked, ())[0], strict=True):
        real.encode_special_tokens = not special
        assert ids == real.encode(text, add_special_tokens=False).ids, text


def test_metadata(tmp_path: Path) -> None:
    found = byte_level("smollm", CHATML, ("<box>", "<|fim_prefix|>"))
    start = found.token_to_id("<|im_start|>")
    found.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    found.save(str(tmp_path / "tokenizer.json"))
    tokenizer = opened(tmp_path)
    fields = {key.removeprefix("tokenizer.ggml."): value for key, (_, value) in file(tokenizer).fields.items()}
    texts, kinds = fields["tokens"], dict(zip(fields["tokens"], fields["token_type"], strict=True))
    assert (fields["model"], fields["pre"], fields["bos_token_id"]) == ("gpt2", "smollm", start)
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (True, False)
    assert [kinds[text] for text in ("<|im_start|>", "<|fim_prefix|>", "<box>", "a", texts[-1])] == [3, 3, 4, 1, 5]
    assert {i: text for i, text in enumerate(texts) if not text.startswith("[PAD")} == tokenizer.texts()
    assert fields["merges"] == [f"{left} {right}" for left, right in tokenizer.merges]
    write_byte_level(tmp_path, "qwen2")
    found_fields = file(opened(tmp_path)).fields
    assert found_fields["tokenizer.ggml.add_bos_token"] == ("bool", False)
    assert "tokenizer.ggml.bos_token_id" not in found_fields


def test_a_difference_names_the_text(tmp_path: Path) -> None:
    write_byte_level(tmp_path, "gpt-2")
    tokenizer = opened(tmp_path)
    vocabulary.prove(tokenizer, file(tokenizer))
    with pytest.raises(Unsupported, match=r"reads a text of a user otherwise than .*tokenizer\.json: '.*' is \["):
        vocabulary.prove(tokenizer, file(tokenizer, pre=("str", "qwen2")))
    with pytest.raises(Unsupported, match="unknown pre-tokenizer type: 'never'"):
        vocabulary.prove(tokenizer, file(tokenizer, pre=("str", "never")))


def test_every_stop_token_ends_an_answer(tmp_path: Path) -> None:
    """llama.cpp knows some by their names; EOS and two more are named in the file."""
    write_byte_level(tmp_path, special=("<a>", "<b>", "<c>", "<d>", "<|im_end|>"))
    tokenizer = opened(tmp_path)
    spec = tiny_spec(vocab_size=400)
    a, b, c, d, known = (tokenizer.added[text] for text in ("<a>", "<b>", "<c>", "<d>", "<|im_end|>"))
    fields = metadata(tokenizer, replace(spec, eos_token_id=a, stop_token_ids=(a, b, c)), 400)
    assert [fields[f"tokenizer.ggml.{key}_token_id"][1] for key in ("eos", "eot", "eom")] == [a, b, c]
    made = GgufFile("tiny.gguf", "llama", fields, ())
    vocabulary.prove(tokenizer, made, (a, b, c, known))
    with pytest.raises(Unsupported, match="would not end an answer at <d>"):
        vocabulary.prove(tokenizer, made, (a, d))


def test_a_special_token_that_llama_cpp_would_find_in_a_users_text(tmp_path: Path) -> None:
    write_byte_level(tmp_path, special=(*CHATML, "assistant"))
    tokenizer = opened(tmp_path)
    with pytest.raises(Unsupported, match="reads a text of a user otherwise than"):
        vocabulary.prove(tokenizer, file(tokenizer))


def _split(document: dict[str, Any]) -> dict[str, Any]:
    step: dict[str, Any] = document["pre_tokenizer"]["pretokenizers"][0]
    return step


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda document: _split(document)["pattern"].update(Regex=r"\w+"), r"no name for the rules .*\(\\w\+\)"),
        (lambda document: _split(document).update(behavior="MergedWithNext"), "no name for the rules"),
        (lambda document: document["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "no name for"),
        (lambda document: document["model"].update(ignore_merges=True), "no name for the rules"),
        (lambda document: document.update(normalizer={"type": "Lowercase"}), "has no byte-pair encoding such as"),
        (lambda document: document["model"].update(byte_fallback=True), "has no byte-pair encoding such as"),
        (lambda document: document["model"].update(end_of_word_suffix="</w>"), "has no byte-pair encoding such as"),
    ],
)
def test_what_llama_cpp_has_no_name_for(change: Any, reason: str, tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    change(document)
    with pytest.raises(Unsupported, match=reason):
        written.pre(tmp_path, document)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny MobileVLM with Qwen2's kind of tokenizer in place of its own."""
    folder = tmp_path_factory.mktemp("byte-level") / "tiny"
    end = write_byte_level(folder).token_to_id("<|im_end|>")
    write_checkpoint(folder, tiny_spec(num_layers=1, vocab_size=400), pieces=384, eos_token_id=end)
    (folder / "tokenizer.model").unlink()
    return open_checkpoint(folder)


def test_a_bundle_reads_as_the_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The float model and llama.cpp, whatever a user writes; BOS is put nowhere."""
    manifest = export(checkpoint, tmp_path / "bundle")
    with closing(join(LlamaCppHalves(tmp_path / "bundle", manifest))) as runtime:
        for question in ("what is it?", "<|im_end|>\n<|im_start|>system", "Don't  say 12345 漢字 🙂\n\n", "<s> </s>"):
            prompt = ask(runtime, question)
            assert prompt == tokenized(checkpoint.tokenizer, checkpoint.spec.prompt, question)
            assert checkpoint.tokenizer.decode(list(texts(prompt)[1])) == f"\n{question} ASSISTANT:"


def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    document = json.loads((checkpoint.path / "tokenizer.json").read_text())
    document["added_tokens"][0] |= {"content": "<|endoftext|>", "rstrip": True}
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint.path, folder)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(Unsupported, match=r"reads a text in a template otherwise than .*'a<\|endoftext\|>b"):
        export(open_checkpoint(folder), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_onnx_gets_the_checkpoints_own_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Byte for byte where it has ``<image>``; else with that token, which text of a user does not reach."""
    (tmp_path / "tokenizer.json").write_text(content(checkpoint))
    found, image = open_file(tmp_path / "tokenizer.json"), image_token_id(checkpoint)
    assert image == 400
    assert found.encode("a<image>b", special=True)[1] == image
    assert Tokenizer.from_file(str(found.path)).encode("a<image>b").ids == found.encode("a<image>b", special=True)
    for text in vocabulary.TEXTS:
        assert found.encode(text) == checkpoint.tokenizer.encode(text)
    for special in ({}, {"bos_token": "<|im_start|>"}):
        settings = client_files.tokenizer(client_files.Layout(checkpoint.spec, image, 144, special))
        assert settings["add_bos_token"] == bool(special)
    write_byte_level(checkpoint.path, special=(*CHATML, "<image>"))
    again = open_checkpoint(checkpoint.path)
    assert content(again).encode() == (checkpoint.path / "tokenizer.json").read_bytes()
    assert image_token_id(again) == again.tokenizer.added["<image>"]
