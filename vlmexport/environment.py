"""Variables of the environment: ``VLMEXPORT_GGUF_TYPE`` sets the recipe key ``gguf.type``, and some are ours alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches

OURS = (
    "VLMEXPORT_CACHE", "VLMEXPORT_CACHE_DAYS", "VLMEXPORT_CACHE_SIZE", "VLMEXPORT_DEBUG", "VLMEXPORT_NODE",
    "VLMEXPORT_WORKER_SECONDS",
)  # fmt: skip
_PREFIX, _OF_TESTS = "VLMEXPORT_", "VLMEXPORT_TEST_"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable that is named like ours and sets nothing: with the nearest one that does."""
    asked = {name for name in environ if name.startswith(_PREFIX) and not name.startswith(_OF_TESTS)}
    if asked <= set(OURS):
        return []
    from vlmexport.recipe import keys, variable  # pydantic takes a tenth of a second

    known = [*OURS, *map(variable, keys())]
    return [f"{name} sets nothing{_nearest(name, known)}" for name in sorted(asked.difference(known))]


def _nearest(name: str, known: list[str]) -> str:
    found = get_close_matches(name.removeprefix(_PREFIX), [one.removeprefix(_PREFIX) for one in known], n=1)
    return f": did you mean {_PREFIX}{found[0]}?" if found else ""
