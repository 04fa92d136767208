"""The programs in recipes/finetune import each other by bare names, as they do when they are run."""

from __future__ import annotations

from pathlib import Path

import pytest

FINETUNE = Path(__file__).parents[2] / "recipes" / "finetune"


@pytest.fixture(autouse=True)
def _recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FINETUNE))
