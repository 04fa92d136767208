"""Where the tests find transformers.js, and how they ask it under Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vlmexport.extras import TRANSFORMERS_JS, npm_install

SCRIPT = Path(__file__).parent / "runtime" / "transformers.mjs"
LLAVA = "LlavaForConditionalGeneration"


@pytest.fixture(scope="session")
def transformers_js() -> Path:
    """A folder with ``node_modules/@huggingface/transformers``: VLMEXPORT_TEST_NODE, or tests/runtime."""
    folder = Path(os.environ.get("VLMEXPORT_TEST_NODE", SCRIPT.parent))
    if not (folder / "node_modules" / TRANSFORMERS_JS).is_dir():
        pytest.skip(f"{TRANSFORMERS_JS} is not installed: {npm_install(folder)}")
    return folder


def ask_node(
    folder: Path, bundle: Path, asked: Sequence[tuple[Path, str]], count: int, kind: str = LLAVA, timeout: float = 300
) -> list[dict[str, Any]]:
    """Answers of transformers.js in ``folder`` to pairs of picture and question: the rendered prompt, its ids, the
    first pixels and the answer's ids, ``count`` at most.

    Args:
        kind: the class that opens the bundle.
        timeout: seconds for all of them.
    """
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    script = SCRIPT if SCRIPT.parent == folder else shutil.copy(SCRIPT, folder / "transformers.run.mjs")
    lines = [json.dumps({"picture": str(picture), "question": question}) for picture, question in asked]
    command = ["node", str(script), str(bundle), str(count), kind]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=timeout, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
