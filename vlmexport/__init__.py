"""vlmexport: take a vision-language model to the phone, and prove that it arrived intact.

The public face; each name is imported when it is first used, so that ``import vlmexport`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmexport.parity.check import check
    from vlmexport.pipeline import export
    from vlmexport.recipe import Recipe, resolve
    from vlmexport.runtime.ask import ask
    from vlmexport.runtime.open import open_runtime
    from vlmexport.source.locate import open_model

__all__ = ["Recipe", "ask", "check", "export", "open_model", "open_runtime", "resolve"]

_HOMES = {
    "Recipe": "vlmexport.recipe",
    "ask": "vlmexport.runtime.ask",
    "check": "vlmexport.parity.check",
    "export": "vlmexport.pipeline",
    "open_model": "vlmexport.source.locate",
    "open_runtime": "vlmexport.runtime.open",
    "resolve": "vlmexport.recipe",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vlmexport' has no attribute {name!r}")
