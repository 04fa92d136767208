"""What a tokenizer is, whichever library it runs on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

IMAGE_MARKER = "<image>"
Parts = Sequence[tuple[str, bool]]
"""A text in parts, and of each whether its special tokens are tokens."""

PROBES = (
    "A chat between a curious user and an assistant.", "trailing ", "two  spaces\n\ttabs\r\n",
    "naïve — 漢字 🙂",
    "\nWhat is in the image? ASSISTANT:", "1234567890 !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", "aaaa aaaaa <s> </s>", "x",
)  # fmt: skip
"""Texts on which two tokenizers are compared that should be one.

None begins with a space, as no chunk of a prompt does: some ``tokenizer.json`` take that space for the one that they
put before a text.
"""


class Tokenizer(Protocol):
    """Texts to token ids and back.

    Attributes:
        path: the file that it was read from, for messages.
        kind: the name of that file.
        added: text → id of tokens that were added to the vocabulary.
        special: texts of special tokens. In a user's text they are plain text; added tokens that are not special are
            tokens everywhere, as in llama.cpp.
        bos_token_id: the token that the tokenizer puts before a text by itself; None where it puts none. One that a
            chat template writes (``<|im_start|>`` of SmolVLM) is no such token.
    """

    path: Path
    kind: str
    added: dict[str, int]
    special: frozenset[str]
    bos_token_id: int | None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a text has."""

    @abstractmethod
    def __len__(self) -> int:
        """One more than the largest id."""

    @abstractmethod
    def own_texts(self) -> dict[int, str]:
        """Id → how the vocabulary writes it, without added tokens."""

    def texts(self) -> dict[int, str]:
        """Id → how the vocabulary writes it, of every token."""
        return self.own_texts() | {i: text for text, i in self.added.items()}

    @abstractmethod
    def encode_parts(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Token ids of a text that is told in parts, without BOS.

        Args:
            parts: texts in order. True: its special tokens are tokens, as in a chat template. False: they are spelled
                as plain text, as in a user's words. No token of the one kind comes out of a part of the other, and
                where none lies between them neighbours are tokenized as one text, as the whole would be.
        """

    @abstractmethod
    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without special tokens."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of one text, without BOS; ``special``: its special tokens are tokens and not plain text."""
        return self.encode_parts([(text, special)])

    def chunks(self, chunks: Iterable[Parts]) -> list[list[int]]:
        """Token ids of the texts around images, each tokenized by itself; the first begins with BOS.

        With an image's number between them they are MobileVLM's ``tokenizer_image_token``.
        """
        first, *others = map(self.encode_parts, chunks)
        bos = [] if self.bos_token_id is None or first[:1] == [self.bos_token_id] else [self.bos_token_id]
        return [[*bos, *first], *others]
