"""The server over HTTP: what it answers, what it refuses, and the command's errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Literal

import pytest

from tests.command import vlmexport
from tests.manifests import manifest as made
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.contents import list_files
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.console import QUIET
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.extras import TRANSFORMERS_JS, TRANSFORMERS_JS_VERSION
from vlmexport.recipe import resolve
from vlmexport.serve.routes import refuse_browser
from vlmexport.serve.server import Server, open_server

WEIGHTS = bytes(range(256)) * 5000
"""More than one block of the server."""


def write_bundle(folder: Path, kind: Literal["onnx", "gguf", "hybrid"] = "onnx") -> Path:
    """Files in a bundle's places, which nothing here opens, and one that is not part of it."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "onnx" / "decoder.onnx_data").write_bytes(WEIGHTS)
    manifest = made(kind, recipe=resolve("onnx-web", environ={}))
    manifest.files = list_files(folder, {"onnx/decoder.onnx": "decoder_model_merged"})
    (folder / "private.txt").write_text("mine")
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names of transformers.js' files."""
    folder = tmp_path_factory.mktemp("modules")
    for name in (
        "@huggingface/transformers/dist/transformers.min.js", "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
        "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    ):  # fmt: skip
        path = folder / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path, modules: Path) -> Iterator[Server]:
    with open_server(bundle, None, modules, QUIET) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """An answer and its body; ``headers`` with underscores."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


@pytest.mark.parametrize(
    ("path", "mime", "beginning"),
    [
        ("/", "text/html; charset=utf-8", b"<!doctype html>"),
        ("/page.css", "text/css; charset=utf-8", b":root"),
        ("/worker.js", "text/javascript; charset=utf-8", b"//"),
        ("/client/ort-wasm-simd-threaded.wasm", "application/wasm", b"onnxruntime-web"),
        ("/client/ort-wasm-simd-threaded.mjs", "text/javascript; charset=utf-8", b"onnxruntime-web"),
        ("/bundle/config.json", "application/json", b"{}"),
        ("/bundle/onnx/decoder.onnx_data?download=1", "application/octet-stream", WEIGHTS),
        ("/about.json", "application/json", b'{"name": "tiny"'),
    ],
)
def test_what_is_served(path: str, mime: str, beginning: bytes, server: Server) -> None:
    answer, body = get(server, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, mime)
    assert body.startswith(beginning)
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    head, nothing = get(server, path, "HEAD")
    assert (head.status, head.headers["Content-Length"], nothing) == (200, str(len(body)), b"")


@pytest.mark.parametrize(
    "path",
    [
        "/bundle/private.txt", "/bundle/", "/bundle", "/bundle/../bundle/private.txt", "/bundle/..%2f..%2fetc/passwd",
        "/bundle/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/bundle/onnx/../../server.py", "/page/index.html",
        "/bundle//etc/passwd", "/bundle/vlmexport.json", "/index.html%00.css", "/bundle/config.json/..",
    ],
)  # fmt: skip
def test_nothing_else_is_served(path: str, server: Server) -> None:
    answer, body = get(server, path)
    assert (answer.status, body) == (404, b"not part of this bundle\n")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8000", "10.0.0.7", "[::1", ""])
def test_other_names_are_refused(host: str, server: Server) -> None:
    answer, body = get(server, "/bundle/config.json", Host=host)
    assert (answer.status, body) == (421, b"this server answers on 127.0.0.1 alone\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9000", "LOCALHOST"])
def test_own_names(host: str, server: Server) -> None:
    assert get(server, "/bundle/config.json", Host=host)[1] == b"{}"
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("0-0", 0, 0),
        ("5-9", 5, 9),
        ("1279990-", 1279990, 1279999),
        ("-4", 1279996, 1279999),
        ("7-99999999", 7, 1279999),
    ],
)
def test_ranges(asked: str, first: int, last: int, server: Server) -> None:
    answer, body = get(server, "/bundle/onnx/decoder.onnx_data", Range=f"bytes={asked}")
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(WEIGHTS)}"
    assert body == WEIGHTS[first : last + 1]


def test_ranges_that_there_are_not(server: Server) -> None:
    for asked in ("1280000-", "9-5", "-0"):
        answer, body = get(server, "/bundle/onnx/decoder.onnx_data", Range=f"bytes={asked}")
        assert (answer.status, answer.headers["Content-Range"], body) == (416, "bytes */1280000", b"")
    for ignored in ("lines=1-2", "bytes=-", "bytes=1-2,4-5"):
        assert get(server, "/bundle/onnx/decoder.onnx_data", Range=ignored)[1] == WEIGHTS


def test_a_file_is_sent_again_when_it_changed(tmp_path: Path, modules: Path) -> None:
    config = write_bundle(tmp_path / "bundle") / "config.json"
    with open_server(config.parent, None, modules, QUIET) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tag = get(server, "/bundle/config.json")[0].headers["ETag"]
        answer, body = get(server, "/bundle/config.json", If_None_Match=tag)
        assert (answer.status, body) == (304, b"")
        config.write_text('{"new": true}')
        assert get(server, "/bundle/config.json", If_None_Match=tag)[1] == b'{"new": true}'
        config.unlink()
        assert get(server, "/bundle/config.json")[0].status == 404
        server.shutdown()


def test_ports(bundle: Path, modules: Path, server: Server) -> None:
    with open_server(bundle, None, modules, QUIET) as second:
        assert second.server_port != server.server_port
    taken = str(server.server_port)
    result = vlmexport("serve", bundle, "--transformers", modules, "--no-browser", "--port", taken)
    assert_one_line_error(result, 2, f"port {taken} is taken", "--port")


def test_the_command_until_ctrl_c(bundle: Path, modules: Path) -> None:
    arguments = ["serve", str(bundle), "--transformers", str(modules), "--no-browser", "--json"]
    command = [sys.executable, "-m", "vlmexport", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        document = "".join(iter(process.stdout.readline, "}\n")) + "}"
        url = json.loads(document)["url"]
        connection = HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_bundles_that_no_browser_runs(tmp_path: Path, modules: Path, bundle: Path) -> None:
    kinds: tuple[Literal["gguf", "hybrid"], ...] = ("gguf", "hybrid")
    for kind in kinds:
        result = vlmexport("serve", write_bundle(tmp_path / kind, kind), "--no-browser")
        assert_one_line_error(result, 3, f"is a {kind} bundle", "vlmexport onnx")
    assert_one_line_error(vlmexport("serve", tmp_path, "--no-browser"), 2, "is not a bundle")
    manifest = Manifest.model_validate_json((bundle / "vlmexport.json").read_text())
    manifest.files[1].bytes = 5 << 30
    with pytest.raises(Unsupported, match=r"holds 5\.4 GB of weights, and WebAssembly addresses 4\.3"):
        refuse_browser(bundle, manifest)
    manifest.source.spec.image_processor.mode = "grid"
    with pytest.raises(Unsupported, match=r"a grid of squares of it, and transformers\.js has no class for that"):
        refuse_browser(bundle, manifest)


@pytest.mark.parametrize("name", ["../private.txt", "/etc/passwd", "onnx/../../private.txt"])
def test_a_manifest_that_names_other_files(name: str, tmp_path: Path, modules: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    text = (bundle / "vlmexport.json").read_text()
    (bundle / "vlmexport.json").write_text(text.replace('"config.json"', json.dumps(name)))
    with pytest.raises(CheckpointError, match="leads out of the bundle"):
        open_server(bundle, None, modules, QUIET)


def test_without_transformers_js(bundle: Path, tmp_path: Path) -> None:
    result = vlmexport("serve", bundle, "--transformers", tmp_path, "--no-browser")
    assert_one_line_error(result, 4, "does not hold transformers.js", f"{TRANSFORMERS_JS}@{TRANSFORMERS_JS_VERSION}")
    environ = os.environ | {"PATH": "", "VLMEXPORT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "vlmexport", "serve", str(bundle), "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert_one_line_error(done, 4, "npm is not installed", "--transformers")
    assert list(tmp_path.iterdir()) == []
