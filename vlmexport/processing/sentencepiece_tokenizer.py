"""A tokenizer that SentencePiece runs, read from ``tokenizer.model``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.documents import read_bounded
from vlmexport.checkpoint.substitutes import refuse_substitute
from vlmexport.errors import CheckpointError
from vlmexport.processing.special_tokens import SpecialToken, SpecialTokens
from vlmexport.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary. ``kind``: normal, unknown, control, user_defined, unused or byte."""

    text: str
    score: float
    kind: str


KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user_defined", 5: "unused", 6: "byte"}
"""SentencePiece's number of a kind → its name."""


def parse_model(serialized: bytes) -> Any:
    """A SentencePiece model, field by field (``sentencepiece_model.proto``)."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(serialized)


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece with the semantics of the slow Llama tokenizer.

    Args:
        path: where it comes from, for messages.
        added: text → id of tokens that are not in the model.
        special: texts of special tokens. In a text they are plain text; added tokens that are not special are found.
        model: the SentencePiece model; read from ``path`` where it is None.

    Attributes:
        merges: pairs in the order in which they are merged, where the file says; else they follow from the scores.
    """

    kind = "tokenizer.model"
    merges: list[tuple[str, str]] | None = None

    def __init__(
        self, path: Path, added: dict[str, int], special: frozenset[str] = frozenset(), model: bytes | None = None
    ) -> None:
        self.path = path
        self.special = special
        from sentencepiece import SentencePieceProcessor

        self._sentencepiece = SentencePieceProcessor()
        try:
            self.model = read_bounded(path) if model is None else model
            self._sentencepiece.LoadFromSerializedProto(self.model)
        except (OSError, RuntimeError, ValueError) as error:
            refuse_substitute(path)
            raise CheckpointError(f"{path} is not a SentencePiece model", "copy tokenizer.model again") from error
        self.bos_token_id: int = self._sentencepiece.bos_id()
        self.eos_token_id: int = self._sentencepiece.eos_id()
        self.unknown_token_id: int = self._sentencepiece.unk_id()
        self._size: int = self._sentencepiece.GetPieceSize()
        self.added = {text: i for text, i in added.items() if i >= self._size or self._piece(i) != text}
        self._found = {i: text for text, i in self.added.items() if text not in special}
        longest_first = sorted(map(re.escape, self._found.values()), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(longest_first)})") if longest_first else None
        self._specials = SpecialTokens(self._special_tokens())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a text has."""
        facts = json.dumps([self.kind, sorted(self.added.items()), sorted(self.special), self._rules()])
        return hashlib.sha256(self.model + facts.encode()).hexdigest()

    def _rules(self) -> str:
        """What cuts a text beside the model and added tokens."""
        return ""

    def _piece(self, i: int) -> str:
        text: str = self._sentencepiece.IdToPiece(i)
        return text

    def __len__(self) -> int:
        return max([self._size, *(i + 1 for i in self.added.values())])

    def pieces(self) -> list[Piece]:
        """The vocabulary of the model in order, without added tokens."""
        model = parse_model(self.model)
        return [Piece(piece.piece, float(piece.score), KINDS[piece.type]) for piece in model.pieces]

    @property
    def begins_with_space(self) -> bool:
        """Whether a text is tokenized as if it began with a space."""
        model = parse_model(self.model)
        return bool(model.normalizer_spec.add_dummy_prefix)

    def own_texts(self) -> dict[int, str]:
        return {i: piece.text for i, piece in enumerate(self.pieces())}

    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for piece in self._specials.cut(parts):
            ids += [piece] if isinstance(piece, int) else self.encode_plain(piece)
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text; special tokens inside it are plain text."""
        ids: list[int] = []
        for odd, part in enumerate(self._split.split(text) if self._split else [text]):
            if odd % 2:
                ids.append(self.added[part])
            elif part:
                ids += self._sentencepiece.EncodeAsIds(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        known = [i for i in ids if i < self._size or i in self._found]
        return "".join(self._parts(known))

    def _special_tokens(self) -> dict[str, SpecialToken]:
        """Special tokens that have an id: added ones, and control pieces of the model."""
        pieces = {text: self._sentencepiece.PieceToId(text) for text in self.special}
        pieces |= {self._piece(i): i for i in (self.bos_token_id, self.eos_token_id) if i >= 0}
        control = {text: i for text, i in pieces.items() if self._sentencepiece.IsControl(i)}
        added = {text: i for text, i in self.added.items() if text in self.special}
        return {text: SpecialToken(i) for text, i in (control | added).items()}

    def _parts(self, ids: list[int]) -> Iterator[str]:
        """Texts of runs of pieces and of the added tokens between them; a run by itself loses its first space."""
        for is_added, group in groupby(enumerate(ids), lambda pair: pair[1] in self._found):
            run = list(group)
            if is_added:
                yield "".join(self._found[i] for _, i in run)
            else:
                first, i = run[0]
                space = " " if first and self._piece(i).startswith("▁") else ""
                yield space + self._sentencepiece.DecodeIds([i for _, i in run])
