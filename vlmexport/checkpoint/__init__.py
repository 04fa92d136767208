"""What the user has: layouts, lazy tensors, tokenizer, told as one Spec.

Imported when first used: a bundle is run without what reads checkpoints.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmexport.checkpoint.layout import Checkpoint, open_checkpoint
    from vlmexport.checkpoint.spec import LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
    from vlmexport.checkpoint.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "LanguageSpec",
    "ProjectorSpec",
    "PromptSpec",
    "Spec",
    "Tokenizer",
    "VisionSpec",
    "open_checkpoint",
]

_HOMES = {"Checkpoint": "layout", "open_checkpoint": "layout", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"vlmexport.checkpoint.{_HOMES.get(name, 'spec')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
