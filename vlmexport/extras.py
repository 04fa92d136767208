"""What an installation may lack, packages or transformers.js, and the line that says how to install it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from vlmexport.errors import MissingDependency

EXTRAS = {
    "export": (
        "torch", "transformers", "safetensors", "sentencepiece", "huggingface_hub", "blake3", "numba", "onnx",
        "onnx_ir", "onnxscript", "sacrebleu",
    ),
    "gguf": ("gguf", "llama_cpp"),
}  # fmt: skip
"""Extra → the modules that come with it and that some command cannot do without."""

TRANSFORMERS_JS, TRANSFORMERS_JS_VERSION = "@huggingface/transformers", "4.3.1"
"""npm's package, and the version that the tests run."""


def require(*extras: str) -> None:
    """Look for the packages of some extras, without importing them, before anything long begins.

    Raises:
        MissingDependency: one is not installed; the cure names every extra that is not whole.
    """
    lacking = {extra: module for extra in extras if (module := _lacks(extra)) is not None}
    if lacking:
        raise _error(next(iter(lacking.values())), *lacking)


def missing(module: str | None) -> MissingDependency:
    """The error for a module that could not be imported.

    Args:
        module: its full name, as ``ModuleNotFoundError.name`` has it.
    """
    package = (module or "a package").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if package in modules), "all")
    return _error(package, extra)


def npm_install(folder: Path) -> str:
    """The command that installs transformers.js in a folder."""
    return f"npm install --ignore-scripts --prefix {folder} {TRANSFORMERS_JS}@{TRANSFORMERS_JS_VERSION}"


def _lacks(extra: str) -> str | None:
    """The first of its modules that is not installed; llama.cpp's libraries may be those of another folder."""
    given = {"llama_cpp"} if os.environ.get("LLAMA_CPP_LIB_PATH") else set()
    return next((name for name in EXTRAS[extra] if name not in given and find_spec(name) is None), None)


def _error(package: str, *extras: str) -> MissingDependency:
    cure = f"pip install 'vlmexport[{','.join(extras)}]'"
    return MissingDependency(f"this needs {package}, which is not installed", cure)
