"""Checks of random models, whose answers never end by themselves."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def _short_answers(short_answers: None) -> None:
    """In every file but those that say otherwise."""
