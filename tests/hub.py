"""A Hub on loopback for huggingface_hub's real client: lists of files, their bytes, gates and what is missing."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Repository:
    """Commit → folder, and what branches and tags stand for. A gated one lists its files and gives none."""

    commits: dict[str, Path]
    names: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        found = self.names.get(revision, revision)
        return found if found in self.commits else None


class Hub:
    """The server. ``asked`` are the files that were sent; ``broken`` is a status that every request gets."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.broken: int | None = None
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that uses it."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "NO_PROXY": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.broken:
            self._send(self.hub.broken, {}, b"", body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(found[1], found[2] or "main", body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], body)
        else:
            self._send(404, {}, b"", body)

    def _found(self, name: str, revision: str, body: bool) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"", body)
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"", body)
            return None
        return repository, commit

    def _listing(self, name: str, revision: str, body: bool) -> None:
        if (found := self._found(name, revision, body)) is None:
            return
        repository, commit = found
        root = repository.commits[commit]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": file.relative_to(root).as_posix(), "size": file.stat().st_size} for file in files]
        document = {
            "id": name, "modelId": name, "sha": commit, "private": False, "disabled": False, "siblings": siblings,
            "gated": "manual" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0,
        }  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(document).encode(), body)

    def _file(self, name: str, revision: str, file: str, body: bool) -> None:
        if (found := self._found(name, revision, body)) is None:
            return
        repository, commit = found
        if repository.gated:
            self._send(
                403, {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted"}, b"", body
            )
            return
        path = repository.commits[commit] / file
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", body)
            return
        data = path.read_bytes()
        if body:
            self.hub.asked.append(f"{name}/{file}")
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(200, {"ETag": tag, "X-Repo-Commit": commit}, data, body)

    def _send(self, status: int, headers: dict[str, str], data: bytes, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers until the end."""
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The same, as this process's client sees it, with a cache of its own."""
    from huggingface_hub import close_session, constants

    with serving() as found:
        for name, value in found.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        settings: dict[str, Any] = {
            "ENDPOINT": found.url, "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_DISABLE_XET": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": found.url + "/{repo_id}/resolve/{revision}/{filename}",
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        yield found
        close_session()
