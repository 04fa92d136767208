"""Run a GGUF bundle with llama.cpp, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.errors import CheckpointError, VlmExportError
from vlmexport.processing.chat_template import ChatTemplate
from vlmexport.processing.messages import Messages
from vlmexport.processing.prompt import Grids, Prompt, Span
from vlmexport.processing.prompt_builder import PromptBuilder
from vlmexport.processing.square import as_square
from vlmexport.processing.tokenizer import Parts
from vlmexport.quantize.ggml import library_path
from vlmexport.runtime.int8_kernels import Int8Kernels, compiled_kernels
from vlmexport.runtime.llamacpp.probe.probe import probe
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32, Runtime, Token
from vlmexport.threads import operator_threads
from vlmexport.workers.wire import Message

_FLOATS = ("f32", "f16", "bf16")
_MARKER = "<__media__>"
_PRECISION = "llama.cpp on the CPU with an F32 cache and without flash attention"
_PIXELS = "pixels are libmtmd's own; a picture that is not square is {}"
_SQUARED = "made square before libmtmd gets it, as the model does; stock llama.cpp resizes it first, then pads"
_AS_IS = "resized first, then padded; the model makes it square first"


class LlamaCppDecoder:
    """The prompt, the logits and the answer of a bundle whose decoder is GGUF.

    Args:
        bundle: its folder.
        threads: for llama.cpp.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        VlmExportError: llama.cpp cannot load a file, or it died.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, bundle: Path, manifest: Manifest, *, threads: int | None = None) -> None:
        for library in ("llama", "mtmd", "ggml-base"):
            library_path(library)
        language = str(bundle / manifest.decoding.file("language"))
        self.process = Process()
        try:
            request = {"op": "open", "language": language, "threads": threads or operator_threads()}
            facts = self.process.ask(request, f"loading {bundle}").body
            template = ChatTemplate(facts["chat_template"], _MARKER, Path(language).name, facts["bos"], facts["eos"])
            self._prompts = PromptBuilder(template, self, manifest.max_images)
            self._check_end(facts["eos_token_id"], manifest.source.spec.eos_token_id, language)
        except VlmExportError:
            self.close()
            raise
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

    def prompt(self, messages: Messages, images: Sequence[Grids]) -> Prompt:
        """Token ids of a conversation, by llama.cpp's tokenizer and the file's chat template."""
        return self._prompts.prompt(messages, images)

    def chunks(self, chunks: Iterable[Parts]) -> list[list[int]]:
        """Token ids of the texts around images, each tokenized by itself; the first begins with BOS."""
        request = {"op": "encode", "chunks": list(chunks)}
        ids: list[list[int]] = self.process.ask(request, "tokenizing a prompt").body["ids"]
        return ids

    def logits(self, prompt: Prompt, tokens: Iterable[F32], last: int = 0) -> F32:
        """[1, last, vocabulary]."""
        prompt.room(self.context)
        return self._decode("logits", prompt, tokens, last=last).arrays[0]

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
        """Chunks of ids, numbers of rows between them, and these rows."""
        chunks = [chunk.length if isinstance(chunk, Span) else list(chunk) for chunk in prompt.chunks()]
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


class LlamaCppVision:
    """Pixels, features and tokens of an mmproj.

    Float pixels are written over libmtmd's own input (``inp_raw``), given features over the input of the projector:
    both are exact. Where the probe says that the installed libmtmd fills its two index inputs wrongly, they are set
    right in every pass. libmtmd resizes a picture and then pads it: one that is not square is made so before the call,
    as the model does; what the library makes of a square is its own.

    Args:
        process: the worker that loads it, with a language model or without one.
        repair: False leaves the index inputs and the pictures as they are.

    Raises:
        VlmExportError: llama.cpp cannot load the file, or it died.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, process: Process, *, threads: int | None = None, repair: bool = True
    ) -> None:
        spec, mmproj = manifest.source.spec, str(bundle / manifest.seeing.file("mmproj"))
        sizes = {"image_size": spec.vision.image_size, "width": spec.language.hidden_size}
        self.process, self._spec, self._squares = process, manifest.image_processor, repair
        found = probe()
        opened = self.process.ask(
            {"op": "open_vision", "mmproj": mmproj, "threads": threads or operator_threads(), **sizes},
            f"loading {mmproj}",
        )
        self.name = f"llama-cpp-python {opened.body['version']}"
        self.repair = repair and found.repairable and not found.right
        self.notes: tuple[str, ...] = (_PIXELS.format(_SQUARED if repair else _AS_IS), found.note(repair))

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width], by libmtmd's own preprocessing."""
        return self.preprocess(image, self._squares)

    def preprocess(self, image: Image.Image, squares: bool) -> F32:
        """``pixels``, of the picture that the model would make square, or of the picture as it is."""
        image = image.convert("RGB")
        rgb = np.asarray(as_square(image, self._spec) if squares else image, np.uint8)
        return self.process.ask({"op": "pixels"}, "preprocessing an image", rgb).arrays[0]

    def features(self, pixels: F32) -> F32:
        """[images, 3, height, width] → [images, patches, vision width]."""
        return self.encode(pixels, self.repair)

    def tokens(self, features: F32) -> F32:
        """[images, patches, vision width] → [images, visual tokens, hidden]."""
        return self._each({"op": "tokens"}, features, "projecting features")

    def encode(self, pixels: F32, repair: bool) -> F32:
        """``features``, repaired or as libmtmd has them."""
        return self._each({"op": "features", "repair": repair}, pixels, "encoding an image")

    def close(self) -> None:
        """End the worker."""
        self.process.close()

    def _each(self, request: dict[str, Any], values: F32, doing: str) -> F32:
        one_by_one = (values[i : i + 1] for i in range(len(values)))
        return np.concatenate([self.process.ask(request, doing, one).arrays[0] for one in one_by_one])


class LlamaCppRuntime(LlamaCppDecoder):
    """The five stages of a GGUF bundle with an mmproj, in one worker; ``repair`` as in ``LlamaCppVision``."""

    def __init__(self, bundle: Path, manifest: Manifest, *, threads: int | None = None, repair: bool = True) -> None:
        super().__init__(bundle, manifest, threads=threads)
        self.repairs = repair
        try:
            self.vision = LlamaCppVision(bundle, manifest, self.process, threads=threads, repair=repair)
        except VlmExportError:
            self.close()
            raise
        self.pixels, self.features, self.tokens = self.vision.pixels, self.vision.features, self.vision.tokens
        self.notes = (*self.notes, *self.vision.notes)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self.process.pid

    def stock(self, images: Iterable[Image.Image]) -> Runtime | None:
        """The same bundle as this libmtmd computes these images when nobody repairs it; None where that makes no
        difference.

        It shares the worker: close this runtime alone.
        """
        differs = self.vision.repair or any(image.width != image.height for image in images)
        return _Stock(self) if self.repairs and differs else None


class _Stock:
    """A view of a runtime whose pixels and features are those of the library as it is."""

    classes: tuple[str, ...] = ()

    def __init__(self, repaired: LlamaCppRuntime) -> None:
        self.name, self.notes, self.stop_token_ids = repaired.name, repaired.notes, repaired.stop_token_ids
        self._repaired, self.context = repaired, repaired.context
        self.tokens, self.prompt = repaired.tokens, repaired.prompt
        self.logits, self.generate, self.decode = repaired.logits, repaired.generate, repaired.decode
        self.steps = repaired.steps

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width]."""
        return self._repaired.vision.preprocess(image, squares=False)

    def features(self, pixels: F32) -> F32:
        """[images, 3, height, width] → [images, patches, vision width]."""
        return self._repaired.vision.encode(pixels, repair=False)

    def close(self) -> None:
        """Nothing: the worker is the other's."""
