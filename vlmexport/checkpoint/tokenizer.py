"""The tokenizer of a checkpoint: SentencePiece, read from ``tokenizer.model``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from vlmexport.checkpoint.spec import PromptSpec
from vlmexport.errors import CheckpointError

IMAGE_MARKER = "<image>"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the visual tokens, each chunk tokenized by itself.

    MobileVLM and LLaVA tokenize so (``tokenizer_image_token``): only the first chunk keeps BOS.
    """

    text: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary. ``kind``: normal, unknown, control, user_defined, unused or byte."""

    text: str
    score: float
    kind: str


class Tokenizer:
    """SentencePiece with the semantics of the slow Llama tokenizer."""

    def __init__(self, path: Path, added: dict[str, int], special: frozenset[str] = frozenset()) -> None:
        self.path = path
        self.added = added
        self.special = special
        self._model = SentencePieceProcessor()
        try:
            self._model.Load(str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a SentencePiece model", "copy tokenizer.model again") from error
        self.bos_token_id: int = self._model.bos_id()
        self.eos_token_id: int = self._model.eos_id()

    def __len__(self) -> int:
        return max([self._model.GetPieceSize(), *(i + 1 for i in self.added.values())])

    def pieces(self) -> list[Piece]:
        """The vocabulary of ``tokenizer.model`` in order, without added tokens."""
        model = self._model
        found = []
        for i in range(model.GetPieceSize()):
            kind = "normal"
            if model.IsUnknown(i):
                kind = "unknown"
            elif model.IsControl(i):
                kind = "control"
            elif model.IsUnused(i):
                kind = "unused"
            elif model.IsByte(i):
                kind = "byte"
            found.append(Piece(model.IdToPiece(i), float(model.GetScore(i)), kind))
        return found

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of a text; special tokens inside it are plain text."""
        ids: list[int] = self._model.EncodeAsIds(text)
        return [self.bos_token_id, *ids] if bos else ids

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without control tokens."""
        text: str = self._model.DecodeIds([i for i in ids if i < self._model.GetPieceSize()])
        return text.strip()

    def prompt(self, template: PromptSpec, question: str) -> Prompt:
        """The prompt of one question about one image."""
        text = template.text(question)
        before, after = text.split(IMAGE_MARKER, 1)
        return Prompt(text, tuple(self.encode(before)), tuple(self.encode(after, bos=False)))


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.model", "copy it from the published checkpoint")
    added_path = folder / "added_tokens.json"
    added = json.loads(added_path.read_text(encoding="utf-8")) if added_path.is_file() else {}
    return Tokenizer(path, added, _special(folder / "special_tokens_map.json"))


def _special(path: Path) -> frozenset[str]:
    """Texts of the special tokens that ``special_tokens_map.json`` names; none where there is no such file."""
    if not path.is_file():
        return frozenset()
    found = json.loads(path.read_text(encoding="utf-8")).values()
    values = [value for entry in found for value in (entry if isinstance(entry, list) else [entry])]
    return frozenset(str(value["content"]) if isinstance(value, dict) else str(value) for value in values)
