"""The process that holds llama.cpp: a failed assertion in ggml ends this process and not the caller's.

Run as ``python -m vlmexport.runtime.llamacpp.worker.main``; requests on stdin, replies on stdout (``wire``).
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.errors import VlmExportError
from vlmexport.runtime.llamacpp.worker.language import Language
from vlmexport.runtime.llamacpp.worker.vision import Vision
from vlmexport.workers.memory import peak_bytes
from vlmexport.workers.wire import Message, serve

_ERROR_LEVEL = 4


class Worker:
    """Answers requests one at a time."""

    def __init__(self) -> None:
        self.complaints: deque[str] = deque(maxlen=3)
        self._turn = 0

    def answer(self, request: Message) -> Message:
        """Run the operation that ``body["op"]`` names; an error says what llama.cpp complained of meanwhile."""
        body = dict(request.body)
        operation = getattr(self, f"do_{body.pop('op')}")
        try:
            reply: Message = operation(*request.arrays, **body)
        except VlmExportError as error:
            said = f" ({'; '.join(self.complaints)})" if self.complaints else ""
            raise type(error)(error.what + said, error.cure) from error
        finally:
            self.complaints.clear()
        return reply

    def do_peak(self) -> Message:
        """The most memory that this process has held."""
        return Message({"bytes": peak_bytes()})

    def do_open(self, language: str, threads: int, watched: bool = False) -> Message:
        """Load the language model; ``watched`` for ``do_language_layers``."""
        self._silence()
        from llama_cpp import __version__, llama_print_system_info

        self.language = Language(Path(language), threads, watched)
        return Message(
            {
                "version": __version__,
                "features": llama_print_system_info().decode(),
                "eos_token_id": self.language.eos_token_id,
                "context": self.language.limit,
                "chat_template": self.language.chat_template,
                "bos": self.language.bos,
                "eos": self.language.eos,
            }
        )

    def do_open_vision(
        self, mmproj: str, image_size: int, width: int, threads: int, vocabulary: str | None = None
    ) -> Message:
        """Load the mmproj; it needs no language model, but the vocabulary of one where it cuts pictures into views."""
        self._silence()
        from llama_cpp import __version__

        self.vision = Vision(Path(mmproj), image_size, width, threads, Path(vocabulary) if vocabulary else None)
        return Message({"version": __version__})

    def do_class_token(self, pixels: npt.NDArray[np.float32]) -> Message:
        """Where this library's graph puts the class token; 0 is the first row, None one that was not found."""
        return Message({"row": self.vision.class_row(pixels)})

    def do_pixels(self, rgb: npt.NDArray[np.uint8]) -> Message:
        """The pixels stage, and rows and columns of the tiles."""
        values, tiles = self.vision.pixels(rgb)
        return Message({"tiles": tiles}, [values])

    def do_features(self, pixels: npt.NDArray[np.float32], repair: bool) -> Message:
        """The features stage."""
        return Message({}, [self.vision.features(pixels, repair)])

    def do_tokens(self, features: npt.NDArray[np.float32]) -> Message:
        """The tokens stage."""
        return Message({}, [self.vision.tokens(features)])

    def do_vision_layers(self, pixels: npt.NDArray[np.float32], names: list[str], repair: bool) -> Message:
        """What the tower's products by weights give, and the features."""
        return Message({}, self.vision.tower_layers(pixels, names, repair))

    def do_projector_layers(self, features: npt.NDArray[np.float32], names: list[str]) -> Message:
        """What the projector's products by weights give, and the tokens."""
        return Message({}, self.vision.projector_layers(features, names))

    def do_language_layers(self, embeds: npt.NDArray[np.float32], names: list[str], num_logits_to_keep: int) -> Message:
        """What the decoder's products by weights give, and the logits."""
        return Message({}, self.language.layers(embeds, names, num_logits_to_keep))

    def do_encode(self, chunks: list[list[tuple[str, bool]]]) -> Message:
        """Token ids of the texts around images, each tokenized by itself; the first begins with BOS."""
        return Message({"ids": [self.language.encode(parts, bos=not i) for i, parts in enumerate(chunks)]})

    def do_logits(
        self, visual: npt.NDArray[np.float32] | None = None, *, chunks: list[list[int] | int], num_logits_to_keep: int
    ) -> Message:
        """The logits stage."""
        self._turn += 1
        return Message({}, [self.language.logits(chunks, visual, num_logits_to_keep)])

    def do_start(
        self, visual: npt.NDArray[np.float32] | None = None, *, chunks: list[list[int] | int], answer: int
    ) -> Message:
        """The first token of an answer of at most so many, and its logits."""
        self._turn += 1
        return self._token(self.language.logits(chunks, visual, 1, answer)[0])

    def do_next(self, token: int, turn: int) -> Message:
        """The next token of the answer that ``start`` began, and its logits."""
        if turn != self._turn:
            raise VlmExportError("the cache of this answer is gone", "finish an answer before you begin another")
        return self._token(self.language.next(token))

    def do_decode(self, ids: list[int]) -> Message:
        """Text of token ids."""
        return Message({"text": self.language.decode(ids)})

    def _token(self, logits: npt.NDArray[np.float32]) -> Message:
        token = int(logits[-1].argmax())
        best = np.partition(logits[-1], -2)[-2:]
        facts = {"token": token, "margin": float(best[1] - best[0]), "turn": self._turn}
        return Message(facts | {"seconds": self.language.seconds}, [logits])

    def _silence(self) -> None:
        """Nothing of llama.cpp's log is shown; its last errors are kept for our own messages."""
        from llama_cpp import llama_cpp, mtmd_cpp

        def keep(level: int, text: bytes, _: Any) -> None:
            if level == _ERROR_LEVEL:
                self.complaints.append(text.decode(errors="replace").strip())

        self._log = llama_cpp.llama_log_callback(keep)
        llama_cpp.llama_log_set(self._log, None)
        mtmd_cpp.mtmd_log_set(self._log, None)


if __name__ == "__main__":
    serve(Worker().answer)
