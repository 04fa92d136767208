"""Language model and tokenizer of a GGUF bundle in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.errors import CheckpointError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Prompt, Span, Views
from vlmexport.processing.prompt_builder import PromptBuilder
from vlmexport.processing.tokenizer import Parts
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.llamacpp.int8_kernels import compiled_kernels
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32, Token
from vlmexport.threads import operator_threads
from vlmexport.workers.wire import Message

_FLOATS = ("f32", "f16", "bf16")
_MARKER = "<__media__>"
_PRECISION = "llama.cpp on the CPU with an F32 cache and without flash attention"


class LlamaCppDecoder:
    """The prompt, the logits and the answer of a bundle whose decoder is GGUF.

    Args:
        bundle: its folder.
        process: the worker that loads it.
        threads: for llama.cpp.

    Raises:
        CheckpointError: the file ends answers otherwise than its source.
        VlmExportError: llama.cpp cannot load the file, or it died.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, bundle: Path, manifest: Manifest, process: Process, *, threads: int | None = None) -> None:
        language = str(bundle / manifest.decoding.file("language"))
        self.process = process
        request = {"op": "open", "language": language, "threads": threads or operator_threads()}
        facts = self.process.ask(request, f"loading {bundle}").body
        template = ChatTemplate(facts["chat_template"], _MARKER, Path(language).name, facts["bos"], facts["eos"])
        self._prompts = PromptBuilder(template, self, manifest.max_images, manifest.image_text)
        self._check_end(facts["eos_token_id"], manifest.source.spec.eos_token_id, language)
        self.name = f"llama-cpp-python {facts['version']}"
        self.context: int = facts["context"]
        self.stop_token_ids = manifest.stop_token_ids
        self.notes: tuple[str, ...] = (_PRECISION,)
        self._is_float = manifest.recipe.gguf.type in _FLOATS
        self._features: str = facts["features"]

    def kernels(self) -> Int8Kernels | None:
        """Those that llama.cpp was compiled with, of which none saturates; None where the decoder is float."""
        return None if self._is_float else Int8Kernels(compiled_kernels(self._features))

    def _check_end(self, found: int, expected: int, path: str) -> None:
        if found != expected:
            raise CheckpointError(
                f"{path} ends answers with token {found}, its source with {expected}", "export the bundle again"
            )

    def prompt(self, messages: Messages, images: Sequence[Views]) -> Prompt:
        """Token ids of a conversation, by llama.cpp's tokenizer and the file's chat template."""
        return self._prompts.prompt(messages, images)

    def chunks(self, chunks: Iterable[Parts]) -> list[list[int]]:
        """Token ids of the texts around images, each tokenized by itself; the first begins with BOS."""
        request = {"op": "encode", "chunks": list(chunks)}
        ids: list[list[int]] = self.process.ask(request, "tokenizing a prompt").body["ids"]
        return ids

    def logits(self, prompt: Prompt, tokens: Iterable[F32], num_logits_to_keep: int) -> F32:
        """[1, num_logits_to_keep, vocabulary]."""
        prompt.room(self.context)
        return self._decode("logits", prompt, tokens, num_logits_to_keep=num_logits_to_keep).arrays[0]

    def generate(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[Token]:
        """Greedy decoding up to a token that ends the answer, which is included, or past it; one answer at a time."""
        return (token for token, _ in self.steps(prompt, tokens, max_new_tokens, ignore_eos=ignore_eos))

    def steps(
        self, prompt: Prompt, tokens: Iterable[F32], max_new_tokens: int, *, ignore_eos: bool = False
    ) -> Iterator[tuple[Token, F32]]:
        """``generate``, each token with the logits that it was taken from."""
        max_new_tokens = min(max_new_tokens, prompt.room(self.context))
        reply = self._decode("start", prompt, tokens, answer=max_new_tokens)
        for step in range(max_new_tokens):
            token = reply.body["token"]
            yield Token(token, reply.body["margin"], reply.body["seconds"]), reply.arrays[0]
            if step == max_new_tokens - 1 or (token in self.stop_token_ids and not ignore_eos):
                return
            reply = self.process.ask({"op": "next", "token": token, "turn": reply.body["turn"]}, "decoding an answer")

    def _decode(self, op: str, prompt: Prompt, tokens: Iterable[F32], **request: int) -> Message:
        """Chunks of ids, numbers of rows between them, and these rows. Views without text between are one chunk."""
        chunks: list[list[int] | int] = []
        for chunk in prompt.chunks():
            if not isinstance(chunk, Span):
                chunks.append(list(chunk))
            elif chunks and isinstance(chunks[-1], int):
                chunks[-1] += chunk.length
            else:
                chunks.append(chunk.length)
        visual = prompt.visual(tokens)
        rows = [np.concatenate(visual)] if visual else []
        return self.process.ask({"op": op, "chunks": chunks, **request}, "decoding a prompt", *rows)

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, by llama.cpp's detokenizer."""
        text: str = self.process.ask({"op": "decode", "ids": ids}, "decoding text").body["text"]
        return text

    def close(self) -> None:
        """End the worker."""
        self.process.close()
