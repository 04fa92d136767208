"""Render the sprite atlas of the demo scenes from Noto Color Emoji (needs Debian's fonts-noto-color-emoji).

Writes three files beside `vlmexport/demo/sprites.py`: the atlas (one square tile per name, row by row), the
names in tile order, and the font's licence notice. Run it only to change the list of sprites: the scenes need
neither the font nor this script.

    python recipes/demo/sprites.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NOTICE = Path("/usr/share/doc/fonts-noto-color-emoji/copyright")
STRIKE = 109  # pixels: the only bitmap size the font holds
TILE = 112  # pixels: side of one tile in the atlas
COLUMNS = 12

EMOJI = {
    "cat": "🐱", "dog": "🐶", "lion": "🦁", "panda": "🐼", "frog": "🐸", "pig": "🐷", "cow": "🐮", "monkey": "🐵",
    "fox": "🦊", "rabbit": "🐰", "chick": "🐤", "penguin": "🐧", "owl": "🦉", "parrot": "🦜", "flamingo": "🦩",
    "bee": "🐝", "butterfly": "🦋", "ladybug": "🐞", "snail": "🐌", "spider": "🕷", "crab": "🦀", "lobster": "🦞",
    "octopus": "🐙", "fish": "🐠", "whale": "🐳", "turtle": "🐢", "snake": "🐍", "elephant": "🐘", "giraffe": "🦒",
    "camel": "🐫", "zebra": "🦓", "apple": "🍎", "pear": "🍐", "lemon": "🍋", "banana": "🍌", "watermelon": "🍉",
    "grapes": "🍇", "strawberry": "🍓", "cherry": "🍒", "pineapple": "🍍", "coconut": "🥥", "avocado": "🥑",
    "tomato": "🍅", "eggplant": "🍆", "carrot": "🥕", "corn": "🌽", "broccoli": "🥦", "mushroom": "🍄", "bread": "🍞",
    "pretzel": "🥨", "cheese": "🧀", "burger": "🍔", "fries": "🍟", "pizza": "🍕", "taco": "🌮", "cookie": "🍪",
    "donut": "🍩", "cake": "🎂", "candy": "🍬", "tree": "🌳", "cactus": "🌵", "palm": "🌴", "sunflower": "🌻",
    "rose": "🌹", "clover": "🍀", "sun": "🌞", "moon": "🌙", "star": "⭐", "cloud": "☁", "rainbow": "🌈",
    "snowflake": "❄", "fire": "🔥", "drop": "💧", "volcano": "🌋", "car": "🚗", "bus": "🚌", "tractor": "🚜",
    "bicycle": "🚲", "train": "🚂", "airplane": "✈", "rocket": "🚀", "sailboat": "⛵", "anchor": "⚓", "house": "🏠",
    "castle": "🏰", "tent": "⛺", "clock": "⏰", "phone": "📱", "laptop": "💻", "camera": "📷", "television": "📺",
    "bulb": "💡", "book": "📕", "pencil": "✏", "scissors": "✂", "key": "🔑", "lock": "🔒", "hammer": "🔨",
    "magnet": "🧲", "bomb": "💣", "balloon": "🎈", "gift": "🎁", "trophy": "🏆", "bell": "🔔", "drum": "🥁",
    "guitar": "🎸", "trumpet": "🎺", "microphone": "🎤", "soccer": "⚽", "basketball": "🏀", "dice": "🎲",
    "umbrella": "🌂", "glasses": "👓", "crown": "👑", "hat": "🎩", "shirt": "👕", "dress": "👗", "boot": "👢",
    "glove": "🧤", "ring": "💍", "diamond": "💎", "heart": "❤", "skull": "💀", "ghost": "👻", "robot": "🤖",
    "alien": "👽", "pumpkin": "🎃", "snowman": "⛄", "hand": "✋", "bone": "🦴", "chair": "🪑",
}  # fmt: skip


def tile(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to its ink and centred in a transparent square of TILE pixels."""
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((STRIKE // 2, STRIKE // 2), emoji, font=font, embedded_color=True)
    box = canvas.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        raise SystemExit(f"the font has no glyph for {emoji!r}")
    ink = canvas.crop(box)
    scale = TILE / max(ink.size)
    ink = ink.resize((round(ink.width * scale), round(ink.height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (TILE, TILE), (0, 0, 0, 0))
    square.paste(ink, ((TILE - ink.width) // 2, (TILE - ink.height) // 2))
    return square


def main() -> None:
    """Write atlas, names and notice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "vlmexport" / "demo")
    out: Path = parser.parse_args().out
    font = ImageFont.truetype(str(FONT), STRIKE)
    rows = -(-len(EMOJI) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * TILE, rows * TILE), (0, 0, 0, 0))
    for index, emoji in enumerate(EMOJI.values()):
        atlas.paste(tile(emoji, font), (index % COLUMNS * TILE, index // COLUMNS * TILE))
    atlas.save(out / "sprites.png", optimize=True)
    names = {"tile": TILE, "columns": COLUMNS, "names": list(EMOJI)}
    (out / "sprites.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    notice = "sprites.png holds glyphs of Noto Color Emoji (https://github.com/googlefonts/noto-emoji).\n\n"
    (out / "SPRITES-LICENSE").write_text(notice + NOTICE.read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{len(EMOJI)} sprites, {(out / 'sprites.png').stat().st_size} bytes")


if __name__ == "__main__":
    main()
