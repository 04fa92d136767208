"""A byte-level tokenizer in GGUF: llama.cpp's ``gpt2``, with the name that it has for the rules that cut a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlmexport.errors import Unsupported
from vlmexport.families.reading.bundles import Field
from vlmexport.processing.fast_tokenizer import FastTokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_CURE = "use an ONNX bundle, which carries tokenizer.json itself"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
}
"""Rules of the pre-tokenizer, and whether a word of the vocabulary is one token whatever the merges say
(``ignore_merges``) → ``tokenizer.ggml.pre``. The name decides both in llama.cpp."""


def fields(tokenizer: FastTokenizer, rows: int) -> dict[str, Field]:
    """Metadata of a byte-level tokenizer, padded to the rows of the embedding; without ids of EOS and padding.

    Raises:
        Unsupported: llama.cpp has no name for its rules.
    """
    texts = [f"[PAD{i}]" for i in range(rows)]
    kinds = [_UNUSED] * rows
    for text, i in tokenizer.vocabulary.items():
        defined = _USER_DEFINED if text in tokenizer.added else _NORMAL
        texts[i], kinds[i] = text, _CONTROL if text in tokenizer.special else defined
    found: dict[str, Field] = {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre(tokenizer.path, tokenizer.document)),
        "tokenizer.ggml.tokens": ("str[]", texts),
        "tokenizer.ggml.token_type": ("i32[]", kinds),
        "tokenizer.ggml.merges": ("str[]", [f"{left} {right}" for left, right in tokenizer.merges]),
        "tokenizer.ggml.add_bos_token": ("bool", tokenizer.bos_token_id is not None),
        "tokenizer.ggml.add_eos_token": ("bool", False),
    }
    if tokenizer.bos_token_id is not None:
        found["tokenizer.ggml.bos_token_id"] = ("u32", tokenizer.bos_token_id)
    return found


def pre(path: Path, document: dict[str, Any]) -> str:
    """llama.cpp's name for the rules of a ``tokenizer.json``.

    Raises:
        Unsupported: there is none.
    """
    model, normalizer = document["model"], document.get("normalizer")
    odd = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout") if model.get(key)]
    if odd or model.get("byte_fallback") or (normalizer or {"type": "NFC"}) != {"type": "NFC"}:
        raise Unsupported(f"llama.cpp has no byte-pair encoding such as that of {path}", _CURE)
    rules = _rules(document.get("pre_tokenizer"))
    name = _NAMES.get((rules, bool(model.get("ignore_merges"))))
    if name is None:
        told = " then ".join(rules) or "none"
        raise Unsupported(f"llama.cpp has no name for the rules by which {path} cuts a text ({told})", _CURE)
    return name


def _rules(step: Any) -> tuple[str, ...]:
    """What a pre-tokenizer cuts a text by, in order; what is not known, as it stands."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(rule for inner in steps for rule in _rules(inner))
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (_GPT2,) if step.get("use_regex", True) else ()
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return (str(regex),)
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}:
            return (str(regex),)
        case {"type": "Digits", "individual_digits": True}:
            return (_DIGIT,)
    return (json.dumps(step),)
