"""Halves of a bundle in llama.cpp, in one worker."""

from __future__ import annotations

from pathlib import Path

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.quantize.ggml import library_path
from vlmexport.runtime.llamacpp.decoder import LlamaCppDecoder
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.llamacpp.vision import LlamaCppVision


class LlamaCppHalves:
    """Both, or one; always in a process of its own.

    Args:
        threads: for llama.cpp.
        repair: as in ``LlamaCppVision``.

    Raises:
        MissingDependency: llama-cpp-python is not installed.
    """

    def __init__(
        self, bundle: Path, manifest: Manifest, *, in_worker: bool = True, threads: int | None = None,
        repair: bool = True,
    ) -> None:  # fmt: skip
        for library in ("llama", "mtmd", "ggml-base"):
            library_path(library)
        self.worker = Process()
        self._bundle, self._manifest, self._threads, self._repair = bundle, manifest, threads, repair

    def seeing(self) -> LlamaCppVision:
        """The mmproj."""
        return LlamaCppVision(self._bundle, self._manifest, self.worker, threads=self._threads, repair=self._repair)

    def decoding(self) -> LlamaCppDecoder:
        """Language model and tokenizer."""
        return LlamaCppDecoder(self._bundle, self._manifest, self.worker, threads=self._threads)

    def close(self) -> None:
        """End the worker."""
        self.worker.close()
