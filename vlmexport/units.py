"""Quantities as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``850MB``, ``0.9 GB`` or ``800MiB``.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:[.][0-9]+)?) *([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size: write it like 850MB or 0.9GB")
    return int(float(match[1]) * _UNITS[match[2]])
