"""Where the tests find transformers.js."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmexport.extras import TRANSFORMERS_JS, npm_install


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """A folder with ``node_modules/@huggingface/transformers``: VLMEXPORT_TEST_NODE, or tests/runtime."""
    folder = Path(os.environ.get("VLMEXPORT_TEST_NODE", Path(__file__).parent / "runtime"))
    if not (folder / "node_modules" / TRANSFORMERS_JS).is_dir():
        pytest.skip(f"{TRANSFORMERS_JS} is not installed: {npm_install(folder)}")
    return folder
