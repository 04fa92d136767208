"""The HTTP server: loopback alone, one table of resources, isolated so that WebAssembly may have threads."""

from __future__ import annotations

import re
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.parse import unquote

from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.serve.client import client_files
from vlmexport.serve.routes import Resource, refuse_browser, routes

HOST = "127.0.0.1"
_HOSTS = (HOST, "localhost")
_PORTS = range(8000, 8100)
_BLOCK = 1 << 20
_HEADERS = {
    # A page of its own process, which alone gets shared memory, and with it threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The page can reach this server and nothing else: a picture cannot leave.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by the browser, and asked for again by its tag: a bundle that was exported anew is seen.
    "Cache-Control": "no-cache",
    "Accept-Ranges": "bytes",
}


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the resources of one server, whole or one range of bytes."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that an idle connection is kept
    resources: ClassVar[dict[str, Resource]] = {}

    def do_GET(self) -> None:
        """A resource."""
        self._answer()

    def do_HEAD(self) -> None:
        """Its headers."""
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to the command."""

    def _answer(self) -> None:
        # A foreign name that points here (DNS rebinding) would make a foreign page same-origin.
        if re.sub(r":\d+$", "", self.headers["Host"] or "").lower() not in _HOSTS:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"this server answers on {HOST} alone\n")
            return
        resource = self.resources.get(unquote(self.path.partition("?")[0]))
        if resource is None:
            self._refuse(HTTPStatus.NOT_FOUND, "not part of this bundle\n")
            return
        try:
            with _opened(resource) as (file, size):
                self._send(resource, file, size)
        except FileNotFoundError:
            self._refuse(HTTPStatus.NOT_FOUND, "missing from the bundle: export it again\n")

    def _send(self, resource: Resource, file: BinaryIO, size: int) -> None:
        tag = resource.etag()
        if self.headers["If-None-Match"] == tag:
            self._head(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        wanted = _range(self.headers["Range"], size)
        if wanted is None:
            self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}, 0)
            return
        headers = {"ETag": tag, "Content-Type": resource.mime}
        if len(wanted) < size:
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if len(wanted) < size else HTTPStatus.OK, headers, len(wanted))
        if self.command == "GET":
            file.seek(wanted.start)
            with suppress(ConnectionError):  # the browser went elsewhere
                for start in range(wanted.start, wanted.stop, _BLOCK):
                    self.wfile.write(file.read(min(_BLOCK, wanted.stop - start)))

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self._head(status, {"Content-Type": "text/plain; charset=utf-8"}, len(text))
        if self.command == "GET":
            self.wfile.write(text.encode())

    def _head(self, status: HTTPStatus, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        more = {} if length is None else {"Content-Length": str(length)}
        for name, value in (_HEADERS | headers | more).items():
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def _opened(resource: Resource) -> Iterator[tuple[BinaryIO, int]]:
    """The content and its size."""
    if isinstance(resource.content, bytes):
        yield BytesIO(resource.content), len(resource.content)
        return
    with resource.content.open("rb") as file:
        yield file, resource.content.stat().st_size


def _range(header: str | None, size: int) -> range | None:
    """The bytes of ``bytes=first-last``, ``bytes=first-`` or ``bytes=-count``; all of them where it is something else,
    None where the file has no such bytes (RFC 9110, 14.1.2)."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if found is None or found.groups() == ("", ""):
        return range(size)
    first, last = found.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    return range(start, stop) if start < stop else None


class Server(ThreadingHTTPServer):
    """One bundle on loopback."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # where it would share a port that another program listens on

    def __init__(self, resources: dict[str, Resource], port: int) -> None:
        super().__init__((HOST, port), type("BundleHandler", (Handler,), {"resources": resources}))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hung up is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    def run(self, browser: bool) -> None:
        """Answer until Ctrl-C."""
        if browser:
            webbrowser.open(self.url)
        with suppress(KeyboardInterrupt):
            self.serve_forever()


def open_server(bundle: Path, port: int | None, transformers: Path | None, console: Console) -> Server:
    """A server of a bundle, bound and not yet answering.

    Args:
        port: the first free one from 8000 on where it is None.
        transformers: a folder with transformers.js in ``node_modules``; the cache where it is None.

    Raises:
        UsageError: not a bundle, or the port is taken.
        Unsupported: a bundle that no browser can run.
        MissingDependency: transformers.js is not here and cannot be fetched.
    """
    manifest = read_manifest(bundle)
    refuse_browser(bundle, manifest)
    resources = routes(bundle, manifest, client_files(transformers, console))
    for number in _PORTS if port is None else (port,):
        with suppress(OSError):
            return Server(resources, number)
    if port is None:
        raise UsageError(f"ports {_PORTS.start} to {_PORTS.stop - 1} are all taken", "name a free one with --port")
    raise UsageError(f"port {port} is taken or not allowed", "name another with --port, or leave it out")
