"""``tokenizer.json`` from a SentencePiece BPE model: the same ids, chunk by chunk, in every Hugging Face runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from vlmexport.checkpoint.image_text import token_of
from vlmexport.errors import Unsupported
from vlmexport.processing.fast_tokenizer import FastTokenizer
from vlmexport.processing.sentencepiece_tokenizer import Piece, SentencePieceTokenizer, parse_model
from vlmexport.processing.tokenizer import IMAGE_MARKER, PROBES

if TYPE_CHECKING:
    from vlmexport.source.checkpoint import Checkpoint

SPACE = "▁"
_BPE = 2


def image_token_id(checkpoint: Checkpoint) -> int:
    """The id of a visual token: the tokenizer's own where it has one, else the next free one."""
    tokenizer, marker = checkpoint.tokenizer, token_of(checkpoint.spec.image_text)
    if marker in tokenizer.added:
        return tokenizer.added[marker]
    return max(checkpoint.spec.language.vocab_size, len(tokenizer))


def content(checkpoint: Checkpoint) -> str:
    """The content of ``tokenizer.json``: the checkpoint's own file, with a visual token where it lacks that; or what
    ``build`` makes of SentencePiece.

    Raises:
        Unsupported: a tokenizer that the file cannot hold.
    """
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, FastTokenizer):
        return tokenizer.with_token(token_of(checkpoint.spec.image_text), image_token_id(checkpoint))
    if isinstance(tokenizer, SentencePieceTokenizer):
        return build(tokenizer, image_token_id(checkpoint)).to_str(pretty=True) + "\n"
    raise Unsupported(f"{tokenizer.path} cannot be held by tokenizer.json", "export to GGUF")


def build(sentencepiece: SentencePieceTokenizer, image: int) -> Tokenizer:
    """The tokenizer, checked on texts against SentencePiece.

    Args:
        image: the id of ``<image>``.

    Raises:
        Unsupported: not a BPE, or it segments a text otherwise than SentencePiece does.
    """
    model = parse_model(sentencepiece.model)
    if model.trainer_spec.model_type != _BPE:
        raise Unsupported(f"{sentencepiece.path} is no BPE model", "export to GGUF, which holds its scores as they are")
    pieces = sentencepiece.pieces()
    vocab = _vocabulary(pieces, sentencepiece.added, image)
    in_order = sorted(sentencepiece.added, key=sentencepiece.added.__getitem__)
    tokenizer = Tokenizer(BPE(
        vocab=vocab, merges=sentencepiece.merges or _merges(pieces), fuse_unk=True,
        unk_token=pieces[model.trainer_spec.unk_id].text,
        byte_fallback=any(piece.kind == "byte" for piece in pieces),
    ))  # fmt: skip
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    decoder = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(decoder)
    special = [piece.text for piece in pieces if piece.kind in ("control", "unknown")]
    special += [text for text in in_order if text in sentencepiece.special and text != IMAGE_MARKER]
    special.append(IMAGE_MARKER)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    defined = [piece.text for piece in pieces if piece.kind == "user_defined"]
    defined += [text for text in in_order if text not in special]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in defined])
    bos = pieces[sentencepiece.bos_token_id].text
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, sentencepiece.bos_token_id)]
    )
    _check(tokenizer, sentencepiece)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of one chunk of text, without BOS; special tokens inside it are plain text."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _vocabulary(pieces: list[Piece], added: dict[str, int], image: int) -> dict[str, int]:
    """Every id up to ``<image>`` by name. Ids that no piece has get a name of their own."""
    names = {i: piece.text for i, piece in enumerate(pieces)}
    names |= {i: text for text, i in added.items()}
    names[image] = IMAGE_MARKER
    for i in range(max(names) + 1):
        names.setdefault(i, f"<unused_{i}>")
    return {text: i for i, text in sorted(names.items())}


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every way to cut a piece in two pieces, best score first: SentencePiece merges by the score of the result."""
    known = {piece.text: i for i, piece in enumerate(pieces) if piece.kind in ("normal", "user_defined", "unused")}
    merges = []
    for text, i in known.items():
        if pieces[i].kind != "normal":
            continue
        cuts = [(text[:k], text[k:]) for k in range(1, len(text)) if text[:k] in known and text[k:] in known]
        merges += [(-pieces[i].score, known[left], known[right], left, right) for left, right in cuts]
    return [(left, right) for *_, left, right in sorted(merges)]


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _check(tokenizer: Tokenizer, sentencepiece: SentencePieceTokenizer) -> None:
    defined = "".join(f" a {text}b" for text in sentencepiece.added if text not in sentencepiece.special)
    for text in (*PROBES, defined):
        got, want = encode(tokenizer, text), sentencepiece.encode(text)
        if got != want:
            raise Unsupported(
                f"{sentencepiece.path} cannot be held by tokenizer.json: {text!r} becomes {got}, not {want}",
                "export to GGUF, or report it with that file",
            )
