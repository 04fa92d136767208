"""The files around a tokenizer: which one a checkpoint has, and what tokens were added to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_object, section
from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.errors import CheckpointError
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.processing.tokenizer import IMAGE_MARKER, Tokenizer

FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
"""Those that a checkpoint may have; who copies it copies them."""

VOCABULARIES = ("tokenizer.model", "tokenizer.json", "vocab.json")
"""Those of them that hold one; the others lie beside."""

_CURE = "tokenizer and weights belong to different models"
_PUBLISHED = "use the tokenizer files that were published together"


@dataclass(frozen=True)
class ExtraTokens:
    """Special tokens that a model's own code adds behind those of its tokenizer.

    Attributes:
        texts: in their order. One that the tokenizer has already is not added.
        image: what is called ``<image>`` here, in the tokenizer's files or among them.
    """

    texts: tuple[str, ...] = ()
    image: str = IMAGE_MARKER


def open_tokenizer(
    folder: Path,
    rows: int,
    prompt: PromptSpec | None = None,
    image_token: int | None = None,
    extra: ExtraTokens | None = None,
    marker: str = IMAGE_MARKER,
) -> Tokenizer:
    """The tokenizer of a checkpoint folder: ``tokenizer.model``, else ``tokenizer.json``: Llama's as SentencePiece, any
    other byte-pair encoding by ``tokenizers``; else ``vocab.json`` with ``merges.txt``.

    Args:
        rows: of the embedding. Added tokens beyond them cannot be used and are left out.
        prompt: its image marks count as tokens of a text although they are special.
        image_token: the id of a visual token where the config gives one.
        extra: tokens that its files do not have; a ``tokenizer.json`` alone takes them.
        marker: the text of a visual token.

    Raises:
        CheckpointError: there is none, it is damaged, it contradicts itself, or it has more pieces than rows.
        Unsupported: a kind of ``tokenizer.json`` that scores cannot tell.
    """
    added, special = _added(folder)
    if image_token is not None:
        if not isinstance(image_token, int) or not 0 <= image_token < rows:
            raise CheckpointError(f"{folder}: {marker} is {image_token}, the embedding has {rows} rows", _CURE)
        if added.setdefault(marker, image_token) != image_token:
            raise CheckpointError(
                f"{folder}: {marker} is {image_token} in config.json, {added[marker]} for the tokenizer",
                _CURE,
            )
    added = {text: i for text, i in added.items() if i < rows}
    marks = {mark for mark in (prompt.image_start, prompt.image_end) if mark} if prompt else set()
    for mark in sorted(marks):
        if mark not in added:
            raise CheckpointError(
                f"{folder}: the prompt needs {mark} (mm_use_im_start_end), the tokenizer has no usable token of it",
                "copy added_tokens.json and tokenizer_config.json from where the model was trained",
            )
    hidden = frozenset((special | {marker}) - marks)
    if (folder / "tokenizer.model").is_file():
        found: Tokenizer = SentencePieceTokenizer(folder / "tokenizer.model", added, hidden)
    elif (folder / "tokenizer.json").is_file():
        found = _from_json(folder / "tokenizer.json", added, hidden, extra, rows)
    elif (folder / "vocab.json").is_file():
        found = _from_vocabulary(folder, added, hidden)
    else:
        raise CheckpointError(
            f"{folder} has no tokenizer.model, no tokenizer.json and no vocab.json with merges.txt",
            "copy them from the published checkpoint",
        )
    _compare(found, rows)
    return found


def _from_json(
    path: Path, added: dict[str, int], special: frozenset[str], extra: ExtraTokens | None, rows: int
) -> Tokenizer:
    from vlmexport.processing.fast_tokenizer import FastTokenizer, extended

    document = read_object(path)
    if extra is not None and extra.texts:
        document, added = extended(document, added, extra.texts, extra.image)
        added = {text: i for text, i in added.items() if i < rows}
        return FastTokenizer(path, document, added, special.union(extra.texts), filed=False)
    if _is_llama(document):
        from vlmexport.processing.json_tokenizer import JsonTokenizer

        return JsonTokenizer(path, added, special)
    return FastTokenizer(path, document, added, special)


def _from_vocabulary(folder: Path, added: dict[str, int], special: frozenset[str]) -> Tokenizer:
    from vlmexport.processing.fast_tokenizer import FastTokenizer
    from vlmexport.processing.vocabulary_files import VOCABULARY, told_as_json

    document = told_as_json(folder, read_object(folder / "tokenizer_config.json"), added, special)
    return FastTokenizer(folder / VOCABULARY, document, added, special)


def _is_llama(document: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is Llama's: byte-pair encoding with byte fallback, ``<s>`` and ``</s>``."""
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not model.get("byte_fallback"):
        return False
    return {"<s>", "</s>"} <= set(model["vocab"])


def _compare(tokenizer: Tokenizer, rows: int) -> None:
    """Pieces against rows, added tokens against pieces."""
    pieces = tokenizer.own_texts()
    if pieces and max(pieces) >= rows:
        raise CheckpointError(f"{tokenizer.path} has {max(pieces) + 1} pieces, the embedding only {rows} rows", _CURE)
    for text, i in tokenizer.added.items():
        if pieces.get(i, text) != text:
            raise CheckpointError(f"{tokenizer.path}: {i} is {pieces[i]!r}, an added token says {text!r}", _CURE)


def _added(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Text → id of every added token that a file names, and the texts of special ones."""
    added: dict[str, int] = {}
    config = read_object(folder / "tokenizer_config.json")
    special = _special(read_object(folder / "special_tokens_map.json"))
    special |= _special({key: value for key, value in config.items() if key.endswith(("_token", "_tokens"))})
    for text, number, is_special in _entries(folder, config):
        if not isinstance(text, str) or not text or not str(number).isdecimal():
            raise CheckpointError(f"{folder}: added token {text!r} has the id {number!r}", _PUBLISHED)
        if added.setdefault(text, int(number)) != int(number):
            raise CheckpointError(
                f"{folder}: the added token {text!r} has the ids {added[text]} and {number}", _PUBLISHED
            )
        special |= {text} if is_special else set()
    if len(set(added.values())) < len(added):
        raise CheckpointError(f"{folder}: two added tokens have the same id", _PUBLISHED)
    return added, special


def _entries(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Any, Any, bool]]:
    """Text, id and whether it is special, from each file that lists added tokens."""
    for text, i in read_object(folder / "added_tokens.json").items():
        yield text, i, False
    decoder = section(config, "added_tokens_decoder", folder / "tokenizer_config.json") or {}
    listed = read_object(folder / "tokenizer.json").get("added_tokens") or []
    entries = [*decoder.items(), *((None, entry) for entry in (listed if isinstance(listed, list) else [listed]))]
    for key, entry in entries:
        if not isinstance(entry, dict):
            raise CheckpointError(f"{folder}: an added token is {entry!r}", _PUBLISHED)
        yield entry.get("content"), entry.get("id") if key is None else key, bool(entry.get("special"))


def _special(document: dict[str, Any]) -> set[str]:
    """Texts in ``special_tokens_map.json`` or in the like keys of ``tokenizer_config.json``; one of them may be a list
    or name each text (``{"image_token": "<image>"}``)."""
    values = list(document.values())
    for value in values:
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += [value["content"]] if "content" in value else value.values()
    return {value for value in values if isinstance(value, str)}
