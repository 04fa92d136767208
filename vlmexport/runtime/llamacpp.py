"""Run a GGUF bundle with llama.cpp, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport import errors
from vlmexport.artifact.bundle import Manifest
from vlmexport.checkpoint import PromptSpec
from vlmexport.checkpoint.tokenizer import Prompt, split_prompt
from vlmexport.errors import CheckpointError, VlmExportError
from vlmexport.quantize.ggml import library_path
from vlmexport.runtime.llamacpp_wire import Array, Message, receive, send
from vlmexport.runtime.stages import F32, Token

_PRECISION = "llama.cpp on the CPU with an F32 cache and without flash attention"
_PIXELS = "pixels are libmtmd's own: it resizes, then pads; MobileVLM pads, then resizes (square images are equal)"
_REPAIRED = (
    "class-token repair: the installed libmtmd shifts the position embeddings by one (llama.cpp #25814); its two "
    "index inputs were set right for this run. A stock llama.cpp gives other answers"
)
_SHIFTED = "the installed libmtmd shifts the position embeddings by one (llama.cpp #25814), left as it is on request"
_RIGHT = "the installed libmtmd places the class token right"


class LlamaCppRuntime:
    """The five stages of a GGUF bundle.

    Float pixels are written over libmtmd's own input (``inp_raw``), given features over the input of the projector:
    both are exact.

    Args:
        bundle: its folder.
        threads: for llama.cpp.
        repair: set libmtmd's two index inputs right where it fills them wrongly; False shows what a stock llama.cpp
            computes.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
        VlmExportError: llama.cpp cannot load a file, or it died.
    """

    def __init__(self, bundle: Path, manifest: Manifest, *, threads: int = 2, repair: bool = True) -> None:
        spec = manifest.source.spec
        for library in ("llama", "mtmd", "ggml-base"):
            library_path(library)
        self._prompt = PromptSpec(**manifest.details["prompt"])
        self._worker = _Process()
        language, mmproj = (str(bundle / manifest.details[part]) for part in ("language", "mmproj"))
        sizes = {"image_size": spec["vision"]["image_size"], "width": spec["language"]["hidden_size"]}
        request = {"op": "open", "language": language, "mmproj": mmproj, "threads": threads, "repair": repair, **sizes}
        try:
            facts = self._worker.ask(request, f"loading {bundle}").body
            self._check_end(facts["eos_token_id"], int(spec["eos_token_id"]), language)
        except VlmExportError:
            self.close()
            raise
        self.name = f"llama-cpp-python {facts['version']}"
        self.context: int = facts["context"]
        self.eos_token_id: int = facts["eos_token_id"]
        wrong: bool = facts["wrong"]
        self.notes: tuple[str, ...] = (_PRECISION, _PIXELS, (_REPAIRED if repair else _SHIFTED) if wrong else _RIGHT)

    def _check_end(self, found: int, expected: int, path: str) -> None:
        if found != expected:
            raise CheckpointError(
                f"{path} ends answers with token {found}, its source with {expected}", "export the bundle again"
            )

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._worker.pid

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [1, 3, height, width], by libmtmd's own preprocessing."""
        rgb = np.asarray(image.convert("RGB"), np.uint8)
        return self._worker.ask({"op": "pixels"}, "preprocessing an image", rgb).arrays[0]

    def features(self, pixels: F32) -> F32:
        """[images, 3, height, width] → [images, patches, vision width]."""
        return self._each("features", pixels, "encoding an image")

    def tokens(self, features: F32) -> F32:
        """[images, patches, vision width] → [images, visual tokens, hidden]."""
        return self._each("tokens", features, "projecting features")

    def _each(self, op: str, values: F32, doing: str) -> F32:
        one_by_one = (values[i : i + 1] for i in range(len(values)))
        return np.concatenate([self._worker.ask({"op": op}, doing, one).arrays[0] for one in one_by_one])

    def prompt(self, question: str) -> Prompt:
        """Token ids before and after the image, by llama.cpp's tokenizer."""
        text = self._prompt.text(question)
        before, after = split_prompt(text)
        ids = self._worker.ask({"op": "prompt", "before": before, "after": after}, "tokenizing a prompt").body
        return Prompt(text, tuple(ids["before"]), tuple(ids["after"]))

    def logits(self, prompt: Prompt, tokens: F32) -> F32:
        """[1, sequence, vocabulary]."""
        return self._worker.ask(_chunks("logits", prompt), "decoding a prompt", tokens).arrays[0]

    def generate(self, prompt: Prompt, tokens: F32, max_new_tokens: int) -> Iterator[Token]:
        """Greedy decoding, the end-of-sequence token included; one answer at a time."""
        reply: dict[str, Any] | None = None
        for _ in range(max_new_tokens):
            if reply is None:
                reply = self._worker.ask(_chunks("start", prompt), "decoding a prompt", tokens).body
            else:
                step = {"op": "next", "token": reply["token"], "turn": reply["turn"]}
                reply = self._worker.ask(step, "decoding an answer").body
            yield Token(reply["token"], reply["margin"])
            if reply["token"] == self.eos_token_id:
                return

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, by llama.cpp's detokenizer."""
        text: str = self._worker.ask({"op": "decode", "ids": ids}, "decoding text").body["text"]
        return text

    def close(self) -> None:
        """End the worker."""
        self._worker.close()


def _chunks(op: str, prompt: Prompt) -> dict[str, Any]:
    return {"op": op, "before": list(prompt.before), "after": list(prompt.after)}


class _Process:
    """The worker process, seen from outside."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        if "LLAMA_CPP_LIB_PATH" in environment:
            environment.setdefault("MTMD_CPP_LIB", environment["LLAMA_CPP_LIB_PATH"])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vlmexport.runtime.llamacpp_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, _end, self._process, self._log)

    def ask(self, body: dict[str, Any], doing: str, *arrays: Array) -> Message:
        """One request and its reply.

        Raises:
            VlmExportError: what the worker reports, or that it died and what it was doing.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._finalizer.alive:
            raise VlmExportError(f"llama.cpp was closed before {doing}", "open the bundle again")
        try:
            send(self._process.stdin, Message(body, list(arrays)))
            reply = receive(self._process.stdout)
        except (EOFError, OSError) as error:
            raise self._died(doing) from error
        if "error" in reply.body:
            kind = getattr(errors, reply.body["kind"])
            raise kind(reply.body["error"], reply.body["cure"])
        return reply

    def close(self) -> None:
        """End the process; again is harmless."""
        self._finalizer()

    def _died(self, doing: str) -> VlmExportError:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last = next((line for line in reversed(lines) if "GGML_ASSERT" in line), lines[-1] if lines else "")
        last = last.rpartition("llama.cpp/")[2]  # an assertion names the folder it was compiled in
        self.close()
        reason = f"signal {-status}" if status < 0 else f"exit code {status}"
        return VlmExportError(
            f"llama.cpp died while {doing} ({reason}{': ' + last.strip() if last else ''})",
            "nothing else was harmed; try again with more memory, or use an ONNX bundle",
        )


def _end(process: subprocess.Popen[bytes], log: Any) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
