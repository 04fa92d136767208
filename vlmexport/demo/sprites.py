"""The sprite atlas: one square RGBA tile per class, glyphs of Noto Color Emoji (SPRITES-LICENSE)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent


@cache
def _index() -> tuple[int, int, tuple[str, ...]]:
    """Tile side in pixels, tiles per row, class names in tile order."""
    index = json.loads((FOLDER / "sprites.json").read_text(encoding="utf-8"))
    return int(index["tile"]), int(index["columns"]), tuple(index["names"])


def sprite_names() -> tuple[str, ...]:
    """Every class name; a class id is a position in this tuple."""
    return _index()[2]


@cache
def _atlas() -> Image.Image:
    with Image.open(FOLDER / "sprites.png") as atlas:
        return atlas.convert("RGBA")


@cache
def sprite(class_id: int) -> Image.Image:
    """The RGBA tile of one class."""
    tile, columns, _ = _index()
    left, top = class_id % columns * tile, class_id // columns * tile
    return _atlas().crop((left, top, left + tile, top + tile))


def article(name: str) -> str:
    """The name with its indefinite article: "a cat", "an apple"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
