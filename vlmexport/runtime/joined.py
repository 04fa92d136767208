"""Two halves of a bundle as one runtime: visual tokens of the one go into the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from PIL import Image

from vlmexport.processing.image import ProcessedImage
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Prompt, Views
from vlmexport.runtime.engines import Halves
from vlmexport.runtime.int8_kernels import Int8Kernels, kernels_of
from vlmexport.runtime.stages import F32, Decoding, Features, RepairingSeeing, Seeing, Token


class Joined:
    """The five stages: three of one half, two of the other.

    Args:
        closes: ``close`` closes the halves; not where another runtime has them too.
    """

    def __init__(self, seeing: Seeing, decoding: Decoding, *, closes: bool = True) -> None:
        self.seeing, self.decoding, self._closes = seeing, decoding, closes
        self.name = " with ".join(dict.fromkeys((seeing.name, decoding.name)))
        self.notes = tuple(dict.fromkeys((*seeing.notes, *decoding.notes)))
        self.stop_token_ids, self.context, self.classes = decoding.stop_token_ids, decoding.context, decoding.classes

    def pixels(self, image: Image.Image) -> ProcessedImage:
        """RGB image → its views."""
        return self.seeing.pixels(image)

    def features(self, image: ProcessedImage) -> Features:
        """What the encoder makes of each view, and the tokens behind it."""
        return self.seeing.features(image)

    def tokens(self, features: Features) -> F32:
        """[visual tokens, hidden]."""
        return self.seeing.tokens(features)

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """Token ids of a conversation, by the bundle's own tokenizer and template."""
        return self.decoding.prompt(messages, images)

    def logits(self, prompt: Prompt, tokens: Iterable[F32], num_logits_to_keep: int) -> F32:
        """[1, num_logits_to_keep, vocabulary], or [1, 1, classes]."""
        return self.decoding.logits(prompt, tokens, num_logits_to_keep)

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it."""
        return self.decoding.generate(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos)

    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from."""
        return self.decoding.steps(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, or of a class."""
        return self.decoding.decode(ids)

    def kernels(self) -> Int8Kernels | None:
        """Of both halves; those of one where they are the same, or the other needs none; None where neither does."""
        seeing, decoding = kernels_of(self.seeing), kernels_of(self.decoding)
        if seeing is None or decoding is None or seeing.name == decoding.name:
            return seeing or decoding
        return replace(seeing, name=f"{seeing.name} ({self.decoding.name.split()[0]}: {decoding.name})")

    def stock(self, images: Iterable[Image.Image]) -> Joined | None:
        """The same bundle as the library of its vision half computes these images when nobody repairs it; None where
        that makes no difference. Both have the same halves: close this runtime alone."""
        as_is = self.seeing.stock(images) if isinstance(self.seeing, RepairingSeeing) else None
        return None if as_is is None else Joined(as_is, self.decoding, closes=False)

    def close(self) -> None:
        """Release the halves."""
        if self._closes:
            self.seeing.close()
            self.decoding.close()


def join(seeing: Halves, decoding: Halves | None = None) -> Joined:
    """Both halves, of one engine or of two; the engines are closed where a half cannot be opened.

    Args:
        decoding: where it is None, the first engine opens this half too.
    """
    decoding = decoding or seeing
    try:
        second = decoding.decoding()
        return Joined(seeing.seeing(), second)
    except BaseException:
        seeing.close()
        decoding.close()
        raise
