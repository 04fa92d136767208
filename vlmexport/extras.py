"""What an installation may lack: the packages of each extra, and the one line that says which to install."""

from __future__ import annotations

from importlib.util import find_spec

from vlmexport.errors import MissingDependency

EXTRAS = {
    "export": (
        "torch", "transformers", "safetensors", "sentencepiece", "huggingface_hub", "blake3", "numba", "onnx",
        "onnx_ir", "onnxscript", "sacrebleu", "yaml",
    ),
    "gguf": ("gguf", "llama_cpp"),
}  # fmt: skip
"""Extra → the modules that come with it and that some command cannot do without."""


def require(extra: str) -> None:
    """Look for the packages of an extra, without importing them, before anything long begins.

    Raises:
        MissingDependency: one is not installed.
    """
    for module in EXTRAS[extra]:
        if find_spec(module) is None:
            raise missing(module)


def missing(module: str | None) -> MissingDependency:
    """The error for a module that could not be imported.

    Args:
        module: its full name, as ``ModuleNotFoundError.name`` has it.
    """
    package = (module or "a package").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if package in modules), "all")
    return MissingDependency(f"this needs {package}, which is not installed", f"pip install 'vlmexport[{extra}]'")
