"""The process that holds llama.cpp."""

from __future__ import annotations

import os

from vlmexport.workers.process import WorkerProcess, own_python


class Process(WorkerProcess):
    """llama.cpp in a process of its own."""

    def __init__(self) -> None:
        environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
        if "LLAMA_CPP_LIB_PATH" in environment:
            environment.setdefault("MTMD_CPP_LIB", environment["LLAMA_CPP_LIB_PATH"])
        command = own_python("vlmexport.runtime.llamacpp.worker.main")
        cure = "nothing else was harmed; try again with more memory, or use an ONNX bundle"
        super().__init__("llama.cpp", command, environment, cure)

    def last_words(self, lines: list[str]) -> str:
        """The assertion that failed, without the folder that it was compiled in."""
        last = next((line for line in reversed(lines) if "GGML_ASSERT" in line), lines[-1] if lines else "")
        return last.rpartition("llama.cpp/")[2].strip()
