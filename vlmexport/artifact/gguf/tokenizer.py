"""The tokenizer of a GGUF language model."""

from __future__ import annotations

from vlmexport.artifact.gguf import byte_level
from vlmexport.artifact.gguf.chat_template import chat_template
from vlmexport.artifact.gguf.media_template import media_template
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families.reading.bundles import Field
from vlmexport.processing.fast_tokenizer import FastTokenizer
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.processing.tokenizer import Tokenizer

_KINDS = {"normal": 1, "unknown": 2, "control": 3, "user_defined": 4, "unused": 5, "byte": 6}
_OTHER_ENDS = ("eot", "eom")
"""Tokens beside EOS that end an answer in llama.cpp, which knows ``<|endoftext|>`` and the like by their names too."""

_ADDED_SCORE, _PAD_SCORE = -1000.0, -10000.0


def fields(tokenizer: Tokenizer, spec: Spec, rows: int) -> dict[str, Field]:
    """Metadata of a tokenizer, padded to the rows of the embedding.

    Args:
        rows: rows of ``token_embd``.

    Raises:
        CheckpointError: the tokenizer has more pieces than the embedding has rows, or answers cannot end.
        Unsupported: llama.cpp does not have this tokenizer.
    """
    if not 0 <= spec.eos_token_id < rows:
        raise CheckpointError(
            f"eos_token_id is {spec.eos_token_id}, the embedding has {rows} rows", "correct config.json"
        )
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = _sentencepiece(tokenizer, spec, rows)
    elif isinstance(tokenizer, FastTokenizer):
        found = byte_level.fields(tokenizer, rows) | {
            "tokenizer.ggml.eos_token_id": ("u32", spec.eos_token_id),
            "tokenizer.chat_template": ("str", _template(spec, tokenizer.texts()[spec.eos_token_id])),
        }
    else:
        raise Unsupported(f"GGUF cannot hold the tokenizer of {tokenizer.path}", "use an ONNX bundle")
    others = [i for i in spec.stop_token_ids if i != spec.eos_token_id and i < rows]
    found |= {f"tokenizer.ggml.{key}_token_id": ("u32", i) for key, i in zip(_OTHER_ENDS, others, strict=False)}
    if spec.pad_token_id is not None and 0 <= spec.pad_token_id < rows:
        found["tokenizer.ggml.padding_token_id"] = ("u32", spec.pad_token_id)
    return found


def _template(spec: Spec, end: str) -> str:
    if not spec.chat_template:
        return chat_template(spec.prompt, end)
    return media_template(spec.chat_template, spec.image_text.token) if spec.image_text else spec.chat_template


def _sentencepiece(tokenizer: SentencePieceTokenizer, spec: Spec, rows: int) -> dict[str, Field]:
    """llama.cpp's ``llama``: pieces with scores."""
    texts = [f"[PAD{i}]" for i in range(rows)]
    scores = [_PAD_SCORE] * rows
    kinds = [_KINDS["unused"]] * rows
    pieces = tokenizer.pieces()
    if len(pieces) > rows:
        raise CheckpointError(
            f"{tokenizer.path} has {len(pieces)} pieces, the embedding only {rows} rows",
            "tokenizer and weights belong to different models",
        )
    for i, piece in enumerate(pieces):
        texts[i], scores[i], kinds[i] = piece.text, piece.score, _KINDS[piece.kind]
    for text, i in tokenizer.added.items():
        if i < rows:
            special = text in tokenizer.special
            texts[i], scores[i], kinds[i] = text, _ADDED_SCORE, _KINDS["control" if special else "user_defined"]
    found: dict[str, Field] = {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": ("str[]", texts),
        "tokenizer.ggml.scores": ("f32[]", scores),
        "tokenizer.ggml.token_type": ("i32[]", kinds),
        "tokenizer.ggml.bos_token_id": ("u32", spec.bos_token_id),
        "tokenizer.ggml.eos_token_id": ("u32", spec.eos_token_id),
        "tokenizer.ggml.unknown_token_id": ("u32", tokenizer.unknown_token_id),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
        "tokenizer.chat_template": ("str", _template(spec, texts[spec.eos_token_id])),
    }
    if not tokenizer.begins_with_space:
        found["tokenizer.ggml.add_space_prefix"] = ("bool", False)
    return found
