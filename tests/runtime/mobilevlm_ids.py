"""What MobileVLM itself makes of a prompt: ``tokenizer_image_token`` with the slow Llama tokenizer, in our own words.

transformers 5 has no slow ``LlamaTokenizer`` any more: its base on SentencePiece is still there, with ``legacy`` on as
in the published checkpoints.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from tests.runtime.gguf_clients import IMAGE_TOKEN

_SPECIAL = {name: AddedToken(text, normalized=False, special=True)
            for name, text in (("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>"))}  # fmt: skip


class SlowTokenizer:
    """The slow tokenizer of a folder with ``tokenizer.model``, with more tokens added in order."""

    def __init__(self, folder: Path, *added: str) -> None:
        self._hf = SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), legacy=True, **_SPECIAL)
        self._hf.add_tokens([AddedToken(text, normalized=False) for text in added])

    def encode(self, text: str) -> list[int]:
        """Token ids with BOS before them."""
        return [1, *self._hf.convert_tokens_to_ids(self._hf.tokenize(text))]

    def image_token_ids(self, prompt: str) -> list[int]:
        """Each chunk around ``<image>`` by itself, BOS only once, ``IMAGE_TOKEN`` between them."""
        first, *others = (self.encode(chunk) for chunk in prompt.split("<image>"))
        return [*first, *chain.from_iterable([IMAGE_TOKEN, *other[1:]] for other in others)]
