"""Fixtures of the page's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.serve.browser import chromium

if TYPE_CHECKING:
    from tests.smolvlm_bundle import Built

__all__ = ["chromium"]


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model whose pictures become tiles, its processor and its bundle."""
    from tests.smolvlm_bundle import build

    return build(tmp_path_factory.mktemp("smolvlm") / "bundle")
