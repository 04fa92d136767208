"""Published layouts, one file each: which config is of it, where its tensors belong, what its config says.

A layout's file supplies ``recognise(config)``, the name of the layout or None; ``place(name)``, component and canonical
name of a tensor; and ``settings(config, path)``. Nothing else in the package looks at ``model_type`` or at a prefix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vlmexport.checkpoint.layouts import llava_hf, original
from vlmexport.checkpoint.layouts.settings import Settings
from vlmexport.errors import Unsupported

__all__ = ["Layout", "Settings", "find"]


class Layout(Protocol):
    """A file of this folder."""

    MODEL_TYPES: tuple[str, ...]
    """Model types and architectures that it answers to."""

    def recognise(self, config: dict[str, Any]) -> str | None:
        """Name of the layout; None where the config is not of it."""

    def place(self, name: str) -> tuple[str, str]:
        """Published name of a tensor → its component and canonical name."""

    def settings(self, config: dict[str, Any], path: Path) -> Settings:
        """What the config says; ``path`` is its file, for messages."""


LAYOUTS: tuple[Layout, ...] = (llava_hf, original)


def find(config: dict[str, Any], path: Path) -> tuple[str, Layout]:
    """Name and file of the layout that a config is of.

    Raises:
        Unsupported: of none that is known.
    """
    for layout in LAYOUTS:
        name = layout.recognise(config)
        if name is not None:
            return name, layout
    known = sorted({kind for layout in LAYOUTS for kind in layout.MODEL_TYPES})
    raise Unsupported(
        f"{path}: model type {config.get('model_type', 'missing')!r} is not a known vision-language model",
        f"known: {', '.join(known)}",
    )
