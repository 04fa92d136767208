"""The float reference: a vision encoder, a projector and a language model, joined in ``vlm.py``.

Imported when first used: what only asks a plug-in for names and sizes needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmexport.model.vlm import VLM, load

__all__ = ["VLM", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("vlmexport.model.vlm"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
