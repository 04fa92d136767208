"""The decoder in libllama, inside of the worker: runs of text and of visual tokens, decoded in turn."""

from __future__ import annotations

import ctypes
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.artifact.gguf.libllama import encode
from vlmexport.errors import UsageError, VlmExportError
from vlmexport.processing.special_tokens import SpecialToken, SpecialTokens
from vlmexport.runtime.llamacpp.worker.watch import Watch

F32 = npt.NDArray[np.float32]
_BATCH = 512
_STEP = 256
"""Positions by which a context grows: llama.cpp rounds up to as many."""

_F32 = 0


class Language:
    """libllama with one GGUF, on the CPU, with an F32 cache and without flash attention.

    Args:
        watched: ``layers`` can be asked for, which takes time at each node.

    Attributes:
        seconds: of libllama's own calls, in the last prompt or the last step.
    """

    def __init__(self, path: Path, threads: int, watched: bool = False) -> None:
        from llama_cpp import llama_cpp

        self._llama: Any = llama_cpp
        self._watch: Watch | None = None
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._evaluate) if watched else None
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise VlmExportError(f"llama.cpp cannot load {path}", "the file is damaged: export the bundle again")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._rows = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._width = llama_cpp.llama_model_n_embd(self._model)
        self.eos_token_id: int = llama_cpp.llama_vocab_eos(self._vocab)
        self._bos_token_id: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.bos, self.eos = self._text(self._bos_token_id), self._text(self.eos_token_id)
        template: bytes | None = llama_cpp.llama_model_chat_template(self._model, None)
        self.chat_template = None if template is None else template.decode(errors="replace")
        self.limit: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self._threads, self._context, self._size = threads, None, 0
        self._past, self.seconds = 0, 0.0

    def _reserve(self, positions: int) -> None:
        """An empty cache for so many positions: that of the context which is open, or a larger one's. Keys and values
        of a large model take a megabyte a position, so none is larger than what was asked for."""
        if positions > self.limit:
            raise UsageError(f"{positions} positions are more than the model's context of {self.limit}",
                             "ask a shorter question")  # fmt: skip
        if self._context is not None and positions <= self._size:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        else:
            if self._context is not None:
                self._llama.llama_free(self._context)
                self._context = None
            self._size = min(-(-positions // _STEP) * _STEP, self.limit)
            self._context = self._open()
        self._past, self.seconds = 0, 0.0

    def _open(self) -> Any:
        params = self._llama.llama_context_default_params()
        params.n_ctx = self._size
        params.n_batch = params.n_ubatch = min(_BATCH, self._size)
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = _F32
        params.offload_kqv = False
        params.no_perf = True
        if self._callback is not None:
            params.cb_eval = self._callback
        context = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise VlmExportError(f"llama.cpp cannot open a context of {self._size} tokens", "free some memory")
        return context

    def encode(self, parts: list[tuple[str, bool]], bos: bool) -> list[int]:
        """Token ids of a text in parts, and of each whether its special tokens are tokens.

        Args:
            bos: whether it begins a prompt.
        """
        ids: list[int] = []
        for piece in self._specials.cut(parts):
            ids += [piece] if isinstance(piece, int) else encode(self._llama, self._vocab, piece)
        adds = bos and self._llama.llama_vocab_get_add_bos(self._vocab) and ids[:1] != [self._bos_token_id]
        return [self._bos_token_id, *ids] if adds else ids

    @cached_property
    def _specials(self) -> SpecialTokens:
        """The tokens that libllama finds in a text only where it is told to."""
        is_control = self._llama.llama_vocab_is_control
        found = {self._text(i): i for i in range(self._rows) if is_control(self._vocab, i)}
        return SpecialTokens({text: SpecialToken(i) for text, i in found.items() if text})

    def _text(self, i: int) -> str:
        """How the vocabulary writes a token; empty where there is no such token."""
        text: bytes | None = self._llama.llama_vocab_get_text(self._vocab, i) if i >= 0 else None
        return (text or b"").decode(errors="replace")

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, without control tokens; bytes that are no character yet become U+FFFD."""
        tokens = (ctypes.c_int32 * len(ids))(*ids)
        size = 64 + 16 * len(ids)
        while True:
            text = ctypes.create_string_buffer(size)
            count = self._llama.llama_detokenize(self._vocab, tokens, len(ids), text, size, True, False)
            if count >= 0:
                return text.raw[:count].decode(errors="replace").strip()
            size = -count

    def logits(
        self, chunks: list[list[int] | int], visual: F32 | None, num_logits_to_keep: int, answer: int = 1
    ) -> F32:
        """Logits of a prompt from an empty cache: f32 [1, num_logits_to_keep, vocabulary], all positions where it is 0.

        Args:
            chunks: token ids, and between them how many visual tokens stand there.
            visual: f32 [visual tokens, hidden] of all images in order; None where there are none.
            answer: most tokens that will be decoded, the one included that follows from these logits.
        """
        length = sum(chunk if isinstance(chunk, int) else len(chunk) for chunk in chunks)
        self._reserve(length + answer - 1)
        wanted = range(max(length - num_logits_to_keep, 0) if num_logits_to_keep else 0, length)
        found, start = [], 0
        for chunk in chunks:
            if isinstance(chunk, int):
                assert visual is not None
                found += self._feed(None, visual[start : start + chunk], wanted)
                start += chunk
            else:
                found += self._feed(chunk, None, wanted)
        return np.concatenate(found)[None]

    def layers(self, embeds: F32, names: list[str], num_logits_to_keep: int) -> list[F32]:
        """What the products by weights give for f32 [1, sequence, hidden] embeddings, and the logits."""
        self._watch = watch = Watch(names)
        logits = self.logits([embeds.shape[1]], embeds[0], num_logits_to_keep)
        self._watch = None
        return [*watch.values(names), logits]

    def _evaluate(self, address: int, ask: bool, _: Any) -> bool:
        return self._watch.evaluate(address, ask) if self._watch is not None else not ask

    def next(self, token: int) -> F32:
        """Logits [1, vocabulary] after one more token."""
        self.seconds = 0.0
        return self._feed([token], None, range(self._past, self._past + 1))[0]

    def _feed(self, ids: list[int] | None, embeds: F32 | None, wanted: range) -> list[F32]:
        """Decode ids, or f32 [count, hidden], in batches; logits [rows, vocabulary] of each one's wanted positions."""
        total = len(ids or ()) if embeds is None else len(embeds)
        if embeds is not None and total and embeds.shape[1] != self._width:
            raise UsageError(f"visual tokens are {embeds.shape[1]} wide, the decoder {self._width}",
                             "language model and mmproj belong to different models")  # fmt: skip
        found = []
        for start in range(0, total, _BATCH):
            part = slice(start, min(start + _BATCH, total))
            found.append(self._batch(ids and ids[part], None if embeds is None else embeds[part], wanted))
        return found

    def _batch(self, ids: list[int] | None, embeds: F32 | None, wanted: range) -> F32:
        count = len(ids or ()) if embeds is None else len(embeds)
        rows = [self._past + i in wanted for i in range(count)]
        batch = self._llama.llama_batch_init(count, 0 if embeds is None else self._width, 1)
        try:
            batch.n_tokens = count
            for i in range(count):
                batch.pos[i] = self._past + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = rows[i]
                if ids:
                    batch.token[i] = ids[i]
            if embeds is not None:
                ctypes.memmove(batch.embd, np.ascontiguousarray(embeds).ctypes.data, embeds.nbytes)
            start = time.perf_counter()
            status = self._llama.llama_decode(self._context, batch)
            if status:
                raise VlmExportError(f"llama_decode failed ({status})", "check the bundle with `vlmexport check`")
            found = self._llama.llama_get_logits(self._context)  # waits for them
            self.seconds += time.perf_counter() - start
            self._past += count
            if not any(rows):
                return np.empty((0, self._rows), np.float32)
            return np.ctypeslib.as_array(found, (sum(rows), self._rows)).copy()
        finally:
            self._llama.llama_batch_free(batch)
