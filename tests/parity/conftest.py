"""Checks of random models, whose answers never end by themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vlmexport.parity import expected, side

SHORT = 6


@pytest.fixture(autouse=True, scope="module")
def _short_answers() -> Iterator[None]:
    """Six random tokens say what 64 say, in a tenth of the time. Trained models end their answers sooner."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (expected, side):
            patch.setattr(module, "MAX_NEW_TOKENS", SHORT)
        yield
