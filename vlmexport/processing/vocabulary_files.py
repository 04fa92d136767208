"""``vocab.json`` and ``merges.txt``, the files of a byte-level tokenizer that transformers runs in Python: the same
encoding, told as a ``tokenizer.json``. LLaVA's training code, and FastVLM's with it, saves these alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlmexport.checkpoint.documents import read_object, read_text
from vlmexport.errors import CheckpointError, Unsupported

VOCABULARY, MERGES = "vocab.json", "merges.txt"
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
"""Flags of an added token of which nothing is said."""

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN = ("Qwen2Tokenizer", "GPT2Tokenizer")


def told_as_json(
    folder: Path, config: Mapping[str, Any], added: Mapping[str, int], special: frozenset[str]
) -> dict[str, Any]:
    """The document of a ``tokenizer.json``.

    Args:
        config: ``tokenizer_config.json``, whose class says by which rules a text is cut.
        added: text → id of every added token.
        special: texts of special ones.

    Raises:
        CheckpointError: a file is missing or damaged.
        Unsupported: a class that is not known.
    """
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in _KNOWN:
        raise Unsupported(
            f"{folder}: a {config.get('tokenizer_class')!r} of {VOCABULARY} and {MERGES} is not known",
            "save it once more with transformers' AutoTokenizer, which writes tokenizer.json",
        )
    vocabulary, lines = read_object(folder / VOCABULARY), read_text(folder / MERGES).splitlines()
    pairs = [line.partition(" ") for line in lines[bool(lines) and lines[0].startswith("#version") :] if line]
    try:
        found = Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, _, right in pairs]))
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(
            f"{folder}: {VOCABULARY} and {MERGES} contradict each other ({error})", "download them again"
        ) from error
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=config.get("add_prefix_space") is True, use_regex=name == "GPT2Tokenizer"
    )
    found.pre_tokenizer, found.decoder = byte_level, decoders.ByteLevel()
    if name == "Qwen2Tokenizer":
        found.normalizer = normalizers.NFC()
        found.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2), "isolated"), byte_level])
    return _document(found, config, added, special)


def _document(
    tokenizer: Tokenizer, config: Mapping[str, Any], added: Mapping[str, int], special: frozenset[str]
) -> dict[str, Any]:
    listed = config.get("added_tokens_decoder") or {}
    flags = {entry["content"]: {key: entry[key] for key in PLAIN if key in entry} for entry in listed.values()}
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document | {
        "added_tokens": [
            PLAIN | flags.get(text, {}) | {"id": i, "content": text, "special": text in special}
            for text, i in sorted(added.items(), key=lambda item: item[1])
        ]
    }
