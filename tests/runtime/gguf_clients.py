"""Clients of a GGUF bundle that we did not write: llama-cpp-python, and xllamacpp's OpenAI-style server over HTTP."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from vlmexport.artifact.bundle.manifest import read_manifest

IMAGE_TOKEN = -200
"""``IMAGE_TOKEN_INDEX`` of MobileVLM and LLaVA: where the tokens of an image go."""

_SCRIPT = Path(__file__).with_name("xllamacpp_server.py")
_START, _REQUEST = 60.0, 120.0  # seconds


def files(bundle: Path) -> tuple[str, str]:
    """The language model and the mmproj of a bundle."""
    manifest = read_manifest(bundle)
    return str(bundle / manifest.decoding.file("language")), str(bundle / manifest.seeing.file("mmproj"))


def data_url(image: Image.Image) -> str:
    """A PNG as text."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def user(*parts: str | Image.Image) -> list[dict[str, Any]]:
    """Messages of one question as OpenAI writes them."""
    typed: list[dict[str, Any]] = [
        {"type": "text", "text": part} if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}} for part in parts
    ]  # fmt: skip
    return [{"role": "user", "content": typed}]


class Server:
    """An HTTP server at ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str) -> Any:
        """A JSON document."""
        with urllib.request.urlopen(self.address + path, timeout=_REQUEST) as reply:
            return json.load(reply)

    def post(self, path: str, **body: Any) -> Any:
        """A JSON document for a JSON document."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_REQUEST) as reply:
            return json.load(reply)

    def ask(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """The answer of ``/v1/chat/completions``; nothing is said of sampling unless ``settings`` do."""
        reply = self.post("/v1/chat/completions", messages=messages, max_tokens=64, **settings)
        text: str = reply["choices"][0]["message"]["content"]
        return text

    def ids(self, prompt: str, marker: str) -> list[int]:
        """Token ids of a rendered prompt as the server cuts it, ``IMAGE_TOKEN`` for each image."""
        found: list[int] = []
        for i, chunk in enumerate(prompt.split(marker)):
            reply = self.post("/tokenize", content=chunk, add_special=not i, parse_special=True)
            found += [IMAGE_TOKEN] * bool(i) + reply["tokens"]
        return found


@contextmanager
def serve(bundle: Path) -> Iterator[Server]:
    """xllamacpp's server in a process of its own, killed afterwards and where it does not start in a minute."""
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT), *files(bundle)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    log = process.stderr
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(log), daemon=True)
    reader.start()
    timer = threading.Timer(_START, process.kill)
    timer.start()
    try:
        address = process.stdout.readline().strip()
        timer.cancel()
        assert address.startswith("http://127.0.0.1:"), "".join(lines)[-2000:]
        yield Server(address)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        reader.join()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


class LlamaCppPython:
    """llama-cpp-python with its handler for any mmproj, which reads the file's chat template."""

    def __init__(self, bundle: Path) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import MTMDChatHandler

        language, mmproj = files(bundle)
        self._handler = MTMDChatHandler(clip_model_path=mmproj, verbose=False, use_gpu=False)
        self.llama = Llama(
            language, chat_handler=self._handler, n_ctx=2048, n_threads=1, n_threads_batch=1, verbose=False
        )
        self._handler._init_mtmd_context(self.llama)

    def ask(self, messages: list[dict[str, Any]]) -> str:
        """The greedy answer."""
        reply = self.llama.create_chat_completion(messages, temperature=0.0, max_tokens=64)
        text: str = reply["choices"][0]["message"]["content"]
        return text

    def ids(self, prompt: str, images: Sequence[Image.Image]) -> list[int]:
        """Token ids of a prompt with ``<__media__>`` in it as libmtmd cuts it, ``IMAGE_TOKEN`` for each view."""
        mtmd, context, count = self._handler._mtmd_cpp, self._handler.mtmd_ctx, len(images)
        pixels = [(ctypes.c_uint8 * len(data)).from_buffer_copy(data) for data in (image.tobytes() for image in images)]
        bitmaps = [mtmd.mtmd_bitmap_init(*image.size, data) for image, data in zip(images, pixels, strict=True)]
        chunks = mtmd.mtmd_input_chunks_init()
        data = prompt.encode()
        text = mtmd.mtmd_input_text(text=data, text_len=len(data), add_special=True, parse_special=True)
        try:
            array = (mtmd.mtmd_bitmap_p_ctypes * count)(*bitmaps)
            assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), array, count) == 0
            parts = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
            return [i for part in parts for i in self._chunk(part)]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)

    def _chunk(self, chunk: Any) -> Sequence[int]:
        mtmd = self._handler._mtmd_cpp
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            return [IMAGE_TOKEN]
        count = ctypes.c_size_t()
        tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return [int(tokens[i]) for i in range(count.value)]

    def close(self) -> None:
        """Free the model."""
        self.llama.close()
