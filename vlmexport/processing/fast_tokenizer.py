"""A tokenizer of Hugging Face's ``tokenizers``: byte-pair encoding, read from the checkpoint's own ``tokenizer.json``.

What the library is given has no special token in it: no word, merge or added token. So no text of a user can become
one, whatever it says. Special tokens of a template are found before the library sees a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library

from vlmexport.checkpoint.documents import read_bounded, read_object
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.processing.special_tokens import SpecialToken, SpecialTokens, looks_special
from vlmexport.processing.tokenizer import IMAGE_MARKER, Tokenizer
from vlmexport.processing.vocabulary_files import PLAIN

_AGAIN = "download it again"


class FastTokenizer(Tokenizer):
    """Byte-pair encoding by ``tokenizers``.

    Args:
        path: the ``tokenizer.json``, or what its document was made of.
        document: its content.
        added: text → id of added tokens. Those that the file has besides are plain text.
        special: texts of special tokens; those that llama.cpp takes for special by their looks are so too. A single
            letter of the vocabulary (some call ``!`` their padding) is none: texts need it.
        filed: whether a ``tokenizer.json`` holds that document as it is.

    Attributes:
        vocabulary: text → id of every token, bytes written as byte-level encodings write them.
        merges: pairs in the order in which they are merged.

    Raises:
        CheckpointError: the file is damaged or contradicts itself.
        Unsupported: it is no byte-pair encoding.
    """

    kind = "tokenizer.json"

    def __init__(
        self, path: Path, document: dict[str, Any], added: dict[str, int], special: frozenset[str], filed: bool = True
    ) -> None:
        self.path, self.document, self.added = path, document, added
        self._filed = filed and path.name == self.kind
        model = document.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise Unsupported(f"{path} is no byte-pair encoding", "copy tokenizer.model, if there is one, beside it")
        try:
            self.merges = [_pair(merge) for merge in model["merges"]]
            self._own: dict[str, int] = model["vocab"]
            self.special = frozenset(
                text
                for text in added
                if (text in special or looks_special(text)) and (len(text) > 1 or text not in self._own)
            )
            self._flags = {entry["content"]: entry for entry in document.get("added_tokens") or []}
            self.bos_token_id = _first(document.get("post_processor"))
            self.vocabulary: dict[str, int] = self._own | added
            tokens = {text: self._token(text) for text in self.special}
            self._library = Library.from_str(json.dumps(self._without(frozenset(tokens))))
        except Exception as error:  # tokenizers raises Exception itself
            raise CheckpointError(f"{path} is no tokenizer.json ({error})", _AGAIN) from error
        if any(self._own.get(text, i) != i for text, i in added.items()) or len(self.texts()) < len(self.vocabulary):
            raise CheckpointError(f"{path}: an added token and the vocabulary contradict each other", _AGAIN)
        self._specials, self._special_ids = SpecialTokens(tokens), {token.id for token in tokens.values()}

    @cached_property
    def fingerprint(self) -> str:
        facts = [self.kind, self.document, sorted(self.added.items()), sorted(self.special)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return max(self.vocabulary.values()) + 1

    def own_texts(self) -> dict[int, str]:
        return {i: text for text, i in self._own.items()}

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for piece in self._specials.cut(parts):
            ids += [piece] if isinstance(piece, int) else self._library.encode(piece, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._library.decode([i for i in ids if i not in self._special_ids], skip_special_tokens=False)
        return text

    def with_token(self, text: str, i: int) -> str:
        """The file's content, byte for byte where it has this special token; else with the token added to it."""
        if text in self._flags:
            return read_bounded(self.path).decode() if self._filed else _text(self.document)
        token = PLAIN | {"id": i, "content": text, "special": True}
        model = self.document["model"] | {"vocab": self._own | {text: i}}
        listed = [*(self.document.get("added_tokens") or []), token]
        return _text(self.document | {"added_tokens": listed, "model": model})

    def _token(self, text: str) -> SpecialToken:
        entry = self._flags.get(text, {})
        flags = (bool(entry.get(key)) for key in ("lstrip", "rstrip", "single_word"))
        return SpecialToken(self.vocabulary[text], *flags)

    def _without(self, special: frozenset[str]) -> dict[str, Any]:
        """The file without special tokens. Other added tokens stand in the vocabulary too: the library takes their ids
        from there, and would else count them anew."""
        added = [
            PLAIN | self._flags.get(text, {}) | {"id": i, "content": text, "special": False}
            for text, i in sorted(self.added.items(), key=lambda item: item[1])
            if text not in special
        ]
        model = dict(self.document["model"])
        unknown = model.get("unk_token")
        if unknown in special and _is_byte_level(self.document):
            model["unk_token"] = None  # every text has bytes
        else:
            special -= {unknown}
        model["vocab"] = {text: i for text, i in self.vocabulary.items() if text not in special}
        model["merges"] = [pair for pair in self.merges if special.isdisjoint((*pair, pair[0] + pair[1]))]
        others = {"post_processor": None, "truncation": None, "padding": None}
        return self.document | {"added_tokens": added, "model": model} | others


def open_file(path: Path) -> FastTokenizer:
    """A ``tokenizer.json`` with nothing beside it, as it lies in a bundle.

    Raises:
        CheckpointError: there is none, or it is damaged.
        Unsupported: it is no byte-pair encoding.
    """
    document = read_object(path)
    listed = document.get("added_tokens") or []
    try:
        added = {entry["content"]: int(entry["id"]) for entry in listed}
        special = frozenset(entry["content"] for entry in listed if entry["special"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} garbles its added tokens ({error!r})", _AGAIN) from error
    return FastTokenizer(path, document, added, special)


def extended(
    document: dict[str, Any], added: dict[str, int], texts: Iterable[str], image: str
) -> tuple[dict[str, Any], dict[str, int]]:
    """A ``tokenizer.json`` and its added tokens, with special ones behind its own, as transformers adds them.

    Args:
        texts: of these tokens; those that it has already stay where they are.
        image: the one of them that is called ``<image>`` in what comes back.

    Raises:
        CheckpointError: it has no vocabulary.
    """
    try:
        vocabulary: dict[str, int] = document["model"]["vocab"] | added
    except (KeyError, TypeError) as error:
        raise CheckpointError("tokenizer.json has no vocabulary", _AGAIN) from error
    free, added, listed = max(vocabulary.values()) + 1, dict(added), list(document.get("added_tokens") or [])
    for text in texts:
        if text not in vocabulary:
            added[text] = vocabulary[text] = free
            listed.append(PLAIN | {"id": free, "content": text, "special": True})
            free += 1
    added = {IMAGE_MARKER if text == image else text: i for text, i in added.items()}
    listed = [entry | {"content": IMAGE_MARKER} if entry.get("content") == image else entry for entry in listed]
    return document | {"added_tokens": listed}, added


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _is_byte_level(document: dict[str, Any]) -> bool:
    """Whether a text is cut into bytes, each of which is in the vocabulary."""
    return '"ByteLevel"' in json.dumps(document.get("pre_tokenizer"))


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def _first(processor: dict[str, Any] | None) -> int | None:
    """The id of the special token that a post-processor puts before a text."""
    for one in (processor or {}).get("processors") or [processor or {}]:
        if one.get("type") == "TemplateProcessing" and (first := one["single"][:1]) and "SpecialToken" in first[0]:
            return int(one["special_tokens"][first[0]["SpecialToken"]["id"]]["ids"][0])
    return None
