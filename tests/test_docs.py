"""The code that documentation shows does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests import tiles
from tests.onnx_bundles import Bundles, picture
from tests.prompts import ask
from vlmexport.runtime.open import open_runtime

DOCS = Path(__file__).parents[1] / "docs"


def blocks(document: str) -> list[str]:
    """Python that a document shows."""
    return re.findall(r"```python\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_plain_onnxruntime(onnx_bundle: Bundles, tmp_path: Path) -> None:
    code, _ = blocks("onnx.md")
    bundle, question, photo = onnx_bundle("fp32"), "what is the image ?", tmp_path / "photo.png"
    picture(1).save(photo)
    own = code.replace('"out/demo-x86"', repr(str(bundle))).replace('"what is in the picture ?"', repr(question))
    assert own.count(str(bundle)) == own.count(question) == 1
    command = [sys.executable, "-W", "error", "-c", f"{own}\nprint(answer)"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with closing(open_runtime(bundle)) as runtime:
        tokens = runtime.tokens(runtime.features(runtime.pixels(picture(1))))
        ids = [token.id for token in runtime.generate(ask(runtime, question), [tokens], 64)]
        assert done.stdout.strip().endswith(f"{runtime.decode(ids)}\n{ids}")


@pytest.mark.slow
def test_plain_onnxruntime_with_views(
    tiles_bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On questions that other views answer."""
    _, code = blocks("onnx.md")
    monkeypatch.chdir(tmp_path)
    bundle, (one, *_, other) = tiles_bundle("fp32"), tiles.heldout(2)
    expected = tiles.answered([one, other])
    for asked, (_, ids), text in zip((one, other), expected, tiles.texts(expected), strict=True):
        asked.image().save("photo.png")
        own = code.replace('"out/smolvlm-x86"', repr(str(bundle))).replace(
            '"What is in the picture?"', repr(asked.text)
        )
        assert own.count(str(bundle)) == own.count(asked.text) == 1
        ran: dict[str, Any] = {}
        exec(own, ran)
        assert ran["answer"] == ids
        assert capsys.readouterr().out.strip() == text
