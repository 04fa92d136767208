"""Where the renderers' templates lie."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlmexport.artifact.card import number


@cache
def environment() -> Environment:
    """The folder ``templates``; values are escaped, one that is missing is an error."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"number": number}
    return found
