"""Special tokens in a text that is told in parts: those of a template are tokens, those of a user's words are text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SpecialToken:
    """One special token, and which white space around it belongs to it (``lstrip`` and ``rstrip`` of tokenizer.json).

    ``single_word``: letters and digits beside it make it plain text.
    """

    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class SpecialTokens:
    """Cuts texts at special tokens, the longest first where several begin at one place.

    Args:
        tokens: text → token.
    """

    def __init__(self, tokens: Mapping[str, SpecialToken]) -> None:
        self._tokens = tokens
        texts = sorted(tokens, key=len, reverse=True)
        patterns = (rf"(?<!\w){re.escape(t)}(?!\w)" if tokens[t].single_word else re.escape(t) for t in texts)
        self._pattern = re.compile("|".join(patterns)) if texts else None

    def cut(self, parts: Iterable[tuple[str, bool]]) -> Iterator[str | int]:
        """Ids of special tokens and the plain texts between them, which are to be tokenized each by itself.

        Args:
            parts: texts in order, and whether their special tokens are tokens. Neighbours that no token parts are one
                plain text, as they are where a whole prompt is tokenized at once.
        """
        plain, strips = "", False
        for text, special in parts:
            for piece in self._pieces(text) if special else (text,):
                token = None if isinstance(piece, str) else piece
                if token is not None:
                    plain = plain.rstrip() if token.lstrip else plain
                    if plain:
                        yield plain
                    yield token.id
                    plain, strips = "", token.rstrip
                elif isinstance(piece, str):
                    plain += piece if plain or not strips else piece.lstrip()
        if plain:
            yield plain

    def _pieces(self, text: str) -> Iterator[str | SpecialToken]:
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            yield text[end : match.start()]
            yield self._tokens[match[0]]
            end = match.end()
        yield text[end:]


def looks_special(text: str) -> bool:
    """Whether llama.cpp and its converter take a token for special that its file does not call so: Qwen's
    ``<|fim_prefix|>``, for one."""
    return (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<｜") and text.endswith("｜>"))
