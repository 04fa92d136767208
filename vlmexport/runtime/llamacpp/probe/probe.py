"""Ask the installed libmtmd, with a tiny mmproj, whether it computes a tower with a class token right.

Versions differ, and so do the libraries that ``LLAMA_CPP_LIB_PATH`` may point at: nothing is assumed. The answer is
cached by path, size and time of the libraries.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vlmexport.cache import cache_folder, keep, used
from vlmexport.quantize.ggml import library_path
from vlmexport.runtime.llamacpp.probe import tiny_model
from vlmexport.runtime.llamacpp.process import Process
from vlmexport.runtime.stages import F32

_VERSION = 1
_LIBRARIES = ("mtmd", "ggml-base")
_RIGHT = 0.9999
_THREADS = 1
_DOING = "probing libmtmd"


@dataclass(frozen=True)
class Probe:
    """What a libmtmd makes of a tower with a class token.

    Attributes:
        library: llama-cpp-python's version, or ``LLAMA_CPP_LIB_PATH`` where that names one (its folder is nobody's
            business in a model card).
        class_token: where its graph puts the class token: ``first``, ``last``, or ``not found``.
        stock: smallest cosine of a visual token with what NumPy computes, as the library is.
        repaired: the same once its index inputs are set right.
    """

    library: str
    class_token: str
    stock: float
    repaired: float

    @property
    def right(self) -> bool:
        """Whether it needs no repair."""
        return self.stock >= _RIGHT

    @property
    def repairable(self) -> bool:
        """Whether it is right once its index inputs are."""
        return self.repaired >= _RIGHT

    def text(self) -> str:
        """One line."""
        where = f"libmtmd of {self.library}: class token {self.class_token}"
        if self.right:
            return f"{where}, computed right (cosine {self.stock:.6f} on the probe)"
        wrong = f"{where}, computed wrong (cosine {self.stock:.3f} on the probe"
        if not self.repairable:
            return f"{wrong}); the repair does not help, it gives {self.repaired:.3f}"
        return f"{wrong}, {self.repaired:.6f} repaired; llama.cpp #25814)"

    def note(self, repair: bool) -> str:
        """What a verdict must say about a run with this library."""
        if self.right:
            return self.text()
        done = "left as it is"
        if repair and self.repairable:
            done = "repaired in process for this run; a stock llama.cpp gives other answers"
        return f"class-token repair: {self.text()}; {done}"


def probe() -> Probe:
    """The installed libmtmd, from the cache where it is known.

    Raises:
        MissingDependency: it is not installed.
        Unsupported: its graph cannot be looked into.
        VlmExportError: it died.
    """
    return _probe(_key())


@cache
def _probe(key: str) -> Probe:
    path = cache_folder() / f"libmtmd-{key}.json"
    try:
        found = Probe(**json.loads(path.read_text(encoding="utf-8")))
        used(path)
    except (OSError, ValueError, TypeError):
        found = _ask()
        keep(path, lambda temporary: temporary.write_text(json.dumps(asdict(found)), encoding="utf-8"))
    return found


def _key() -> str:
    facts: list[object] = [_VERSION]
    for path in (library_path(name).resolve() for name in _LIBRARIES):
        status = path.stat()
        facts += [str(path), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _ask() -> Probe:
    process, spec, pixels = Process(), tiny_model.SPEC, tiny_model.pixels()
    try:
        with TemporaryDirectory() as folder:
            path = tiny_model.write(Path(folder))
            sizes = {"image_size": spec.vision.image_size, "width": spec.language.hidden_size, "threads": _THREADS}
            facts = process.ask({"op": "open_vision", "mmproj": str(path), **sizes}, _DOING).body
            row = process.ask({"op": "class_token"}, _DOING, pixels).body["row"]
            stock = _compare(process, pixels, repair=False)
            # Where the graph shows no class token there is nothing to repair by.
            repaired = stock if row is None else _compare(process, pixels, repair=True)
    finally:
        process.close()
    where = "not found" if row is None else "first" if row == 0 else "last"
    given = "LLAMA_CPP_LIB_PATH" in os.environ
    return Probe("LLAMA_CPP_LIB_PATH" if given else f"llama-cpp-python {facts['version']}", where, stock, repaired)


def _compare(process: Process, pixels: F32, repair: bool) -> float:
    features = process.ask({"op": "features", "repair": repair}, _DOING, pixels).arrays[0]
    tokens = process.ask({"op": "tokens"}, _DOING, features).arrays[0]
    return _cosine(tokens, tiny_model.tokens(pixels))


def _cosine(a: F32, b: F32) -> float:
    """Smallest of two arrays' rows."""
    rows = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
    return float(rows.min())
