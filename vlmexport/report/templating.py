"""Where the renderers' templates lie."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vlmexport.artifact.bundle.card import number
from vlmexport.text import plain


@cache
def environment() -> Environment:
    """The folder ``templates``; values are escaped, and without characters that XML or UTF-8 cannot hold; one that is
    missing is an error."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_plain
    )
    found.filters |= {"number": number}
    return found


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
