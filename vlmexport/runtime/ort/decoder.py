"""Language model and tokenizer of a bundle on ONNX Runtime, through nothing but the bundle's own files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.checkpoint.documents import read_bounded
from vlmexport.checkpoint.image_text import token_of
from vlmexport.errors import CheckpointError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.fast_tokenizer import open_file
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Prompt, Views
from vlmexport.processing.prompt_builder import PromptBuilder
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.ort.graphs import Graphs, machine_notes
from vlmexport.runtime.ort.int8_kernels import find_kernels
from vlmexport.runtime.ort.sessions import Cache, Sessions
from vlmexport.runtime.stages import F32, Token

_TOKENIZER_CONFIG = "tokenizer_config.json"


class OrtDecoder:
    """The prompt, the logits and the answer of an ONNX decoder.

    Args:
        sessions: where the graphs run.
        threads: of one operator; ``operator_threads()`` where it is None.
    """

    def __init__(self, bundle: Path, manifest: Manifest, sessions: Sessions, threads: int | None = None) -> None:
        self.name, self.notes = sessions.name, machine_notes(manifest, sessions.machine)
        self._graphs = Graphs(bundle, manifest.decoding, sessions, threads)
        self.stop_token_ids = manifest.stop_token_ids
        self.classes = manifest.classes
        self.context = manifest.source.spec.language.max_positions
        template = _template(bundle / _TOKENIZER_CONFIG, token_of(manifest.image_text))
        self._tokenizer = open_file(bundle / manifest.decoding.file("tokenizer"))
        self._prompts = PromptBuilder(template, self._tokenizer, manifest.max_images, manifest.image_text)

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """Token ids of a conversation, by ``tokenizer.json`` and the chat template of its configuration."""
        return self._prompts.prompt(messages, images)

    def logits(self, prompt: Prompt, tokens: Iterable[F32], num_logits_to_keep: int) -> F32:
        """[1, num_logits_to_keep, vocabulary], or [1, 1, classes]."""
        prompt.room(self.context)
        embeds = self._embeds(prompt, tokens)
        return self._cache(embeds.shape[1]).step(embeds, num_logits_to_keep)

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it."""
        return (token for token, _ in self.steps(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos))

    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from."""
        start = time.perf_counter()
        max_new_tokens = min(max_new_tokens, prompt.room(self.context))
        embeds = self._embeds(prompt, tokens)
        cache = self._cache(embeds.shape[1] + max_new_tokens - 1)
        for _ in range(max_new_tokens):
            logits = cache.step(embeds, 1)[0]
            seconds = time.perf_counter() - start
            second, best = np.partition(logits[-1], -2)[-2:]
            token = int(logits[-1].argmax())
            yield Token(token, float(best - second), seconds), logits
            if self.classes or (token in self.stop_token_ids and not ignore_eos):
                return
            start = time.perf_counter()
            embeds = self._embed((token,))

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without control tokens; of a class."""
        if self.classes:
            return " ".join(self.classes[i] for i in ids)
        return self._tokenizer.decode(ids).strip()

    def kernels(self) -> Int8Kernels:
        """Those that ONNX Runtime has where the sessions run, whatever this half's graphs hold."""
        return find_kernels(self._graphs.sessions)

    def close(self) -> None:
        """Release the sessions."""
        self._graphs.close()

    def _cache(self, length: int) -> Cache:
        return self._graphs.sessions.cache(self._graphs.opened("decoder_model_merged"), length)

    def _embed(self, ids: tuple[int, ...]) -> F32:
        return self._graphs.run("embed_tokens", {"input_ids": np.array([ids], np.int64).reshape(1, -1)})[
            "inputs_embeds"
        ]

    def _embeds(self, prompt: Prompt, tokens: Iterable[F32]) -> F32:
        parts = prompt.parts(tokens)
        return np.concatenate([self._embed(part) if isinstance(part, tuple) else part[None] for part in parts], 1)


def _template(path: Path, marker: str) -> ChatTemplate:
    try:
        config = json.loads(read_bounded(path))
        source, bos, eos = (config.get(key) for key in ("chat_template", "bos_token", "eos_token"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})", "export the bundle again") from error
    return ChatTemplate(source, marker, path.name, str(bos or ""), str(eos or ""))
