"""A hybrid bundle: vision encoder and projector on ONNX Runtime, the decoder in llama.cpp, joined by visual tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Grids, Prompt
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.llamacpp.runtime import LlamaCppDecoder
from vlmexport.runtime.ort.vision import OrtVision
from vlmexport.runtime.stages import F32, Token


class HybridRuntime:
    """The five stages: three of one runtime, two of the other. Tokens go into llama.cpp as embeddings.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        VlmExportError: llama.cpp cannot load the decoder, or it died.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        self._vision = OrtVision(bundle, manifest)
        self._decoder = LlamaCppDecoder(bundle, manifest)
        self.name = f"{self._vision.name} with {self._decoder.name}"
        self.notes = (*self._vision.notes, *self._decoder.notes)
        self.stop_token_ids, self.context = self._decoder.stop_token_ids, self._decoder.context
        self._is_int8 = manifest.recipe.onnx.vision == "int8"

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return self._vision.pixels(image)

    def features(self, pixels: F32) -> F32:
        """[1, 3, height, width] → [1, patches, vision width]."""
        return self._vision.features(pixels)

    def tokens(self, features: F32) -> F32:
        """[1, patches, vision width] → [1, visual tokens, hidden]."""
        return self._vision.tokens(features)

    def prompt(self, messages: Messages, images: Sequence[Grids]) -> Prompt:
        """Token ids of a conversation, by llama.cpp's tokenizer."""
        return self._decoder.prompt(messages, images)

    def logits(self, prompt: Prompt, tokens: Iterable[F32], last: int = 0) -> F32:
        """[1, last, vocabulary]."""
        return self._decoder.logits(prompt, tokens, last)

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it."""
        return self._decoder.generate(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos)

    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from."""
        return self._decoder.steps(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids."""
        return self._decoder.decode(ids)

    def kernels(self) -> Int8Kernels | None:
        """Of both halves; those of one where they are the same, or the other needs none; None where neither does."""
        decoder = self._decoder.kernels()
        if not self._is_int8:
            return decoder
        vision = self._vision.kernels()
        if decoder is None or vision.name == decoder.name:
            return vision
        return replace(vision, name=f"{vision.name} (llama.cpp: {decoder.name})")

    def close(self) -> None:
        """Release the sessions, end the worker."""
        self._vision.close()
        self._decoder.close()
