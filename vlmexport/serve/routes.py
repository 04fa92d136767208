"""What the server answers: path → resource. Nothing that is not in this table can be read."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.artifact.bundle.halves import DECODER, ONNXRUNTIME, VISION
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.errors import Unsupported
from vlmexport.processing.javascript import MODULE

_PAGE = Path(__file__).with_name("page")
_MIME = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".wasm": "application/wasm",
}
_ADDRESSABLE = 4 << 30
"""Bytes of a WebAssembly memory, which holds the weights of all graphs."""
_EXAMPLES = 3


@dataclass(frozen=True)
class Resource:
    """A file, read when it is asked for, or bytes."""

    content: Path | bytes
    mime: str

    def etag(self) -> str:
        """Changes with the content."""
        if isinstance(self.content, bytes):
            return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
        found = self.content.stat()
        return f'"{found.st_mtime_ns:x}-{found.st_size:x}"'


def refuse_browser(bundle: Path, manifest: Manifest) -> None:
    """Refuse a bundle that no browser can run.

    Raises:
        Unsupported: it holds GGUF files, answers with a class, cuts pictures as transformers.js does not, or holds more
            than a browser can address.
    """
    if {manifest.seeing.engine, manifest.decoding.engine} != {ONNXRUNTIME}:
        raise Unsupported(
            f"{bundle} is a {manifest.kind} bundle, and browsers run ONNX alone",
            "make one with `vlmexport onnx MODEL --target web`",
        )
    if manifest.classes:
        raise Unsupported(
            f"{bundle} answers with one of {len(manifest.classes)} classes, and transformers.js generates text",
            "ask it with `vlmexport run`, or run its graphs in a page of your own (docs/onnx.md)",
        )
    if manifest.image_processor.mode == "grid":
        raise Unsupported(
            f"{bundle} sees a picture and then a grid of squares of it, and transformers.js has no class for that",
            "ask it with `vlmexport run`",
        )
    size = manifest.size(VISION + DECODER)
    if size >= _ADDRESSABLE:
        raise Unsupported(
            f"{bundle} holds {size / 1e9:.1f} GB of weights, and WebAssembly addresses {_ADDRESSABLE / 1e9:.1f}",
            "export with `--target web --decoder int4`",
        )


def routes(bundle: Path, manifest: Manifest, client: dict[str, Path]) -> dict[str, Resource]:
    """Path of a URL → what is there: the page, the client, the bundle's own files, pictures to begin with."""
    files = {f"/{path.name}": path for path in _PAGE.iterdir()}
    files["/"] = files.pop("/index.html")
    files[f"/{MODULE.name}"] = MODULE
    files |= {f"/client/{name}": path for name, path in client.items()}
    files |= {f"/bundle/{file.path}": bundle / file.path for file in manifest.files}
    found = {path: Resource(file, _mime(file)) for path, file in files.items()}
    examples = _examples(manifest)
    about = json.dumps(_about(manifest, list(examples))).encode()
    return found | {"/about.json": Resource(about, _MIME[".json"])} | examples


def _mime(path: Path) -> str:
    return _MIME.get(path.suffix, "application/octet-stream")


def _about(manifest: Manifest, examples: list[str]) -> dict[str, Any]:
    """What the page says of the bundle."""
    return {
        "name": manifest.source.name,
        "recipe": manifest.recipe.name,
        "bytes": manifest.size(VISION + DECODER),
        "max_images": manifest.max_images,
        "parity": manifest.parity and manifest.parity.passed,
        "examples": examples,
    }


def _examples(manifest: Manifest) -> dict[str, Resource]:
    """Held-out scenes for the demo model, which knows nothing else; no picture for others."""
    if manifest.source.path != "demo":
        return {}
    from vlmexport.demo.heldout import heldout_scenes
    from vlmexport.demo.paint import paint

    found = {}
    for scene in heldout_scenes(_EXAMPLES):
        file = io.BytesIO()
        paint(scene).save(file, "PNG")
        found[f"/examples/{scene.seed}.png"] = Resource(file.getvalue(), _MIME[".png"])
    return found
