"""transformers.js from npm, for real: fetched once, kept, and the same bytes as an installation's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from vlmexport.console import QUIET
from vlmexport.errors import MissingDependency
from vlmexport.serve.client import VERSION, client_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed"),
]


def test_fetched_once(tmp_path: Path, transformers_js: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMEXPORT_CACHE", str(tmp_path))
    try:
        found = client_files(None, QUIET)
    except MissingDependency as error:
        pytest.skip(f"npm's registry does not answer: {error}")
    for name, path in client_files(transformers_js, QUIET).items():
        assert found[name].read_bytes() == path.read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == [f"transformers.js-{VERSION}"]
    monkeypatch.setenv("PATH", "")
    assert client_files(None, QUIET) == found


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
