"""Where the tests find transformers.js."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmexport.serve.client import VERSION


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """A folder with ``node_modules/@huggingface/transformers``: VLMEXPORT_TEST_NODE, or tests/runtime."""
    folder = Path(os.environ.get("VLMEXPORT_TEST_NODE", Path(__file__).parent / "runtime"))
    if not (folder / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip(
            f"@huggingface/transformers is not installed: npm install --ignore-scripts --prefix {folder} "
            f"@huggingface/transformers@{VERSION}"
        )
    return folder
