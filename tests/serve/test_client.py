"""transformers.js from npm, for real: fetched once, kept, and the same bytes as an installation's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vlmexport.console import QUIET
from vlmexport.errors import MissingDependency
from vlmexport.extras import TRANSFORMERS_JS_VERSION
from vlmexport.serve import client
from vlmexport.serve.client import client_files

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
NPM = """#!/usr/bin/env python3
import io, json, sys, tarfile
name = "onnxruntime-web" if "onnxruntime-web" in sys.argv[-1] else "@huggingface/transformers"
files = {"package.json": json.dumps({"dependencies": {"onnxruntime-web": "1.0"}})}
files |= {f"dist/{file}": name for file in FILES}
with tarfile.open("package.tgz", "w:gz") as archive:
    for path, text in files.items():
        member = tarfile.TarInfo(f"package/{path}")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
"""


@pytest.mark.skipif(os.name == "nt", reason="its npm is a script of POSIX")
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a script gives in npm's place is kept for this process, and fetched once."""
    script = tmp_path / "npm"
    script.write_text(NPM.replace("FILES", repr(tuple(client._FILES))))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("VLMEXPORT_CACHE", "/proc/vlmexport")
    found = client_files(None, QUIET)
    assert {name: path.read_text() for name, path in found.items()} == client._FILES
    script.unlink()
    monkeypatch.setenv("PATH", "")
    assert client_files(None, QUIET) == found
    for folder in client._own.values():
        folder.cleanup()
    client._own.clear()


@pytest.mark.slow
@needs_npm
def test_fetched_once(tmp_path: Path, transformers_js: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path))
    try:
        found = client_files(None, QUIET)
    except MissingDependency as error:
        pytest.skip(f"npm's registry does not answer: {error}")
    for name, path in client_files(transformers_js, QUIET).items():
        assert found[name].read_bytes() == path.read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == [f"transformers.js-{TRANSFORMERS_JS_VERSION}"]
    monkeypatch.setenv("PATH", "")
    assert client_files(None, QUIET) == found


@pytest.mark.slow
@needs_npm
def test_a_registry_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"registry": "http://127.0.0.1:9/", "fetch_retries": "0", "cache": str(tmp_path / "npm")}
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(MissingDependency, match=r"npm cannot fetch @huggingface/transformers@.*ECONNREFUSED"):
        client_files(None, QUIET)
    assert list((tmp_path / "cache").iterdir()) == []
