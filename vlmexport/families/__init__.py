"""Published layouts, one file each: which config is of it, where its tensors belong, what its config says.

The folder is read, no table is kept. At most one file recognises a config. Nothing else in the package looks at
``model_type`` or at a prefix.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from vlmexport.checkpoint.settings import Settings
from vlmexport.errors import Unsupported


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


def find(config: dict[str, Any], path: Path) -> tuple[str, Layout]:
    """Name and file of the layout that a config is of.

    Raises:
        Unsupported: of none that is known.
    """
    known: set[str] = set()
    for info in iter_modules(__path__):
        layout = cast(Layout, import_module(f"{__name__}.{info.name}"))
        name = layout.recognise(config)
        if name is not None:
            return name, layout
        known |= set(layout.MODEL_TYPES)
    raise Unsupported(
        f"{path}: model type {config.get('model_type', 'missing')!r} is not a known vision-language model",
        f"known: {', '.join(sorted(known))}",
    )
