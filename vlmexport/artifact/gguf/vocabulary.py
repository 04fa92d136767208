"""The proof that llama.cpp tokenizes as the checkpoint does: libllama is asked for the ids of texts."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.errors import Unsupported
from vlmexport.processing.tokenizer import PROBES, Tokenizer
from vlmexport.quantize.ggml import library_path
from vlmexport.workers.process import WorkerProcess, own_python

TEXTS = (
    *PROBES, " ", "   ", " a", "\n\n\n", "\t\t x", "line\n  indented\n\n\tmore\r\n",
    "7 42 365 1024 31415926535 3.14 ½ ٣ ²", "I'm, YOU'LL, it's; don't ’s", "你好，世界！今天是2024年1月1日。",
    "こんにちは 안녕하세요 Привет, мир नमस्ते สวัสดี مرحبا", "🙂🦙👩‍👩‍👧 ❤️ 🇩🇪",
    "def f(x):\n    return x**2 + 1  # ok\n", "for (int i=0;i<10;++i) { a[i] = \"\\n\"; }",
    "https://example.org/a_b-c?d=1&e=%20", "É é ñ Å ﬁ ǆ", "\u200b\u00a0\u3000\ufeff", "e" * 100, "=" * 40,
    "\x00\x01\x7f",
)  # fmt: skip
"""Digits, white space, contractions, scripts, emoji, code, control characters. All are in Unicode's form NFC, as
llama.cpp does not bring a text into it."""

_CURE = "use an ONNX bundle, which carries tokenizer.json itself, or report it with that file"


def prove(tokenizer: Tokenizer, file: GgufFile, stops: tuple[int, ...] = ()) -> None:
    """Compare the ids of ``TEXTS`` and of all added tokens as a user's text, of the added tokens as a template's too.

    A template is not asked for ``</s>``: where that is a word of the vocabulary, as in Qwen2's, llama.cpp takes it for
    the end of an answer, whatever the file says of it.

    Args:
        file: the language model's; only its metadata are used.
        stops: ids that end an answer, in llama.cpp too.

    Raises:
        Unsupported: a text has other ids, a token ends no answer, or llama.cpp cannot read the tokenizer.
        MissingDependency: llama-cpp-python is not installed.
    """
    library_path("llama")
    added = [f"a{text}b\n{text}\n" for text in sorted(tokenizer.added, key=tokenizer.added.__getitem__)]
    asked = (*((text, True) for text in added), *((text, False) for text in (*TEXTS, *added)))
    ids, ends = _ask(replace(file, tensors=()).header, asked, stops)
    for text in (tokenizer.texts()[i] for i in stops if i not in ends):
        raise Unsupported(f"llama.cpp would not end an answer at {text}, as the model of {tokenizer.path} does", _CURE)
    for (text, special), found in zip(asked, ids, strict=True):
        wanted = tokenizer.encode(text, special)
        if found != wanted:
            whose = "in a template" if special else "of a user"
            raise Unsupported(
                f"llama.cpp reads a text {whose} otherwise than {tokenizer.path}: {text!r} is {found}, not {wanted}",
                _CURE,
            )


@lru_cache(maxsize=1)  # an export asks before anything long begins, and where the file is made
def _ask(
    header: bytes, asked: tuple[tuple[str, bool], ...], stops: tuple[int, ...]
) -> tuple[list[list[int]], list[int]]:
    """Ids of each text, and which of the stops end an answer."""
    command = own_python("vlmexport.artifact.gguf.vocabulary_worker")
    worker = WorkerProcess("llama.cpp", command, os.environ | {"GGML_NO_BACKTRACE": "1"}, _CURE)
    with closing(worker), TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        path.write_bytes(header)
        body = {"path": str(path), "texts": [text for text, _ in asked], "special": [special for _, special in asked]}
        found = worker.ask(body | {"stops": stops}, "reading the tokenizer").body
    return found["ids"], found["stops"]
