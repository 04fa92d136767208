"""Where what is expensive to make anew is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``VLMEXPORT_CACHE``, else ``vlmexport`` in the user's cache folder; it need not exist yet."""
    given = os.environ.get("VLMEXPORT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmexport"
