"""A tokenizer that has only ``tokenizer.json``: Llama's byte-pair encoding, told as SentencePiece pieces with scores.

llama.cpp merges by the score of the result, ``tokenizer.json`` by the rank of the pair. A piece's score here is minus
the rank of its first merge: the same order wherever the merges came from scores. It is compared on texts.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer as HfTokenizer

from vlmexport.checkpoint.documents import read_object
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.processing.sentencepiece_tokenizer import KINDS, SentencePieceTokenizer
from vlmexport.processing.tokenizer import PROBES

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NUMBERS = {kind: number for number, kind in KINDS.items()}
_BPE = 2
_CURE = "copy tokenizer.model from the published checkpoint beside it"


class JsonTokenizer(SentencePieceTokenizer):
    """Encodes and decodes through ``tokenizers``; pieces and scores are those of an equal SentencePiece model.

    Args:
        path: a file of byte-pair encoding with byte fallback, ``<s>`` and ``</s>``.

    Raises:
        CheckpointError: the file is damaged.
        Unsupported: no scores give the same ids.
    """

    kind = "tokenizer.json"

    def __init__(self, path: Path, added: dict[str, int], special: frozenset[str] = frozenset()) -> None:
        document = read_object(path)
        bpe = document["model"]
        self._hf = _load(path, document, added, special)
        vocab: dict[str, int] = bpe["vocab"]
        unknown = str(bpe.get("unk_token") or "<unk>")
        if sorted(vocab.values()) != list(range(len(vocab))) or unknown not in vocab:
            raise Unsupported(f"{path}: its vocabulary has holes, or lacks {unknown}", _CURE)
        self.merges = [_pair(merge) for merge in bpe["merges"]]
        kinds = {unknown: "unknown", "<s>": "control", "</s>": "control"}
        kinds |= {text: "control" if text in special else "user_defined" for text in added if text not in kinds}
        super().__init__(path, added, special, self._model(path, vocab, kinds, unknown))
        for text in self.added:
            if text not in special and super().encode_plain(f"a {text}b") != self.encode_plain(f"a {text}b"):
                raise Unsupported(f"{path} cuts a text at {text} otherwise than llama.cpp does", _CURE)

    def encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._hf.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._hf.decode(ids, skip_special_tokens=True)
        return text

    def _rules(self) -> str:
        rules: str = self._hf.to_str()
        return rules

    def _model(self, path: Path, vocab: dict[str, int], kinds: dict[str, str], unknown: str) -> bytes:
        """The SentencePiece model that gives the same ids, with a leading space or without."""
        model = _pieces(vocab, kinds, self.merges or [])
        model.trainer_spec.unk_id, model.trainer_spec.unk_piece = vocab[unknown], unknown
        expected = [self.encode_plain(text) for text in PROBES]
        for prefix in (True, False):
            model.normalizer_spec.add_dummy_prefix = prefix
            proto: bytes = model.SerializeToString()
            sentencepiece = SentencePieceProcessor()
            try:
                sentencepiece.LoadFromSerializedProto(proto)
            except RuntimeError as error:
                raise Unsupported(f"{path} cannot be told as SentencePiece pieces", _CURE) from error
            if [sentencepiece.EncodeAsIds(text) for text in PROBES] == expected:
                return proto
        raise Unsupported(f"{path} gives ids that no scores of pieces give", _CURE)


def _pieces(vocab: dict[str, int], kinds: dict[str, str], merges: list[tuple[str, str]]) -> Any:
    """A BPE model; pieces that nothing merges to come after all others."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    model = sentencepiece_model_pb2.ModelProto()
    for text in sorted(vocab, key=vocab.__getitem__):
        kind = kinds.get(text, "byte" if _BYTE.fullmatch(text) else "normal")
        score = -float(ranks.get(text, len(merges))) if kind == "normal" else 0.0
        model.pieces.add(piece=text, score=score, type=_NUMBERS[kind])
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = _BPE, True, len(vocab)
    trainer.bos_id, trainer.eos_id, trainer.pad_id = vocab["<s>"], vocab["</s>"], -1
    normalizer.name, normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = "identity", False, True
    return model


def _load(path: Path, document: dict[str, Any], added: dict[str, int], special: frozenset[str]) -> HfTokenizer:
    """The file with those tokens added to it, special where ``special`` says."""
    known = {entry["content"]: entry for entry in document.get("added_tokens") or []}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    listed = [
        plain | known.get(text, {}) | {"id": i, "content": text, "special": text in special}
        for text, i in sorted(added.items(), key=lambda item: item[1])
    ]
    try:
        tokenizer = HfTokenizer.from_str(json.dumps(document | {"added_tokens": listed}))
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(f"{path} is no tokenizer.json ({error})", "download it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)
