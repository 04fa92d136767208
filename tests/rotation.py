"""Which of many like cases a run takes: a few that are always the same, a part that a seed chooses, or all.

``make test`` takes the few. ``make rotating`` takes a part, another one for each seed (CI's seed is the commit, and a
run prints it, so that a part that failed can be run again). ``make thorough`` takes all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

ALL = bool(os.environ.get("VLMEXPORT_TEST_ALL"))
SEED = os.environ.get("VLMEXPORT_TEST_SEED")


def rotating(cases: Sequence[Case], few: Sequence[Case], part: int) -> list[Case]:
    """The cases of this run.

    Args:
        few: without a seed.
        part: how many a seed chooses; their order is that of ``cases``.
    """
    if ALL:
        return list(cases)
    if SEED is None:
        return list(few)
    chosen = sorted(random.Random(SEED).sample(range(len(cases)), part))
    return [cases[index] for index in chosen]
