"""Scenes with up to nine small objects, decided by one seed, and the questions about them.

A picture of 448 to 576 pixels a side has nine regions, three rows and three columns. A region holds one object at
most, somewhere in it. The demo's sprites are used (`vlmexport/demo/SPRITES-LICENSE`), those whose name and plural are
one token each of SmolLM2's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmexport.demo.paint import hue_rotation
from vlmexport.demo.scenes import BACKGROUNDS
from vlmexport.demo.sprites import sprite, sprite_names

VERSION = 1  # of the generator: raise it when the same seed would give another scene
SEEDS = {
    "train": range(10_000_000),
    "validation": range(10_000_000, 11_000_000),
    "heldout": range(20_000_000, 21_000_000),
}
NAMES = (
    "cat", "dog", "lion", "frog", "pig", "cow", "monkey", "fox", "rabbit", "penguin", "owl", "parrot", "bee",
    "butterfly", "snail", "spider", "crab", "whale", "turtle", "snake", "elephant", "apple", "pear", "lemon",
    "banana", "strawberry", "mushroom", "bread", "cheese", "cookie", "tree", "moon", "star", "car", "bus", "train",
    "house", "clock", "phone", "camera", "book", "key", "bell", "crown", "hat", "heart", "skull", "ghost",
)  # fmt: skip
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
NUMBERS = ("zero", "one", "two", "three", "four")
KINDS = ("what", "where", "how many")
ALIKE = tuple(
    tuple(group.split())
    for group in (
        "cat lion fox dog", "pig cow monkey rabbit", "frog turtle snake tree pear", "car bus train house",
        "apple strawberry heart crab mushroom", "lemon banana star moon cheese", "bee butterfly owl parrot",
        "bread cookie snail monkey", "phone camera book clock", "key bell crown star", "elephant whale ghost skull",
        "penguin hat spider camera",
    )
)  # fmt: skip
_IDS = tuple(sprite_names().index(name) for name in NAMES)


@dataclass(frozen=True)
class Level:
    """How hard the pictures are.

    ``size``: sprites' sides as shares of the picture's longer side; ``angle`` in degrees; ``light`` as a share; ``hue``
    in radians; ``noise`` in levels of 255.
    """

    size: tuple[float, float] = (0.08, 0.15)
    angle: float = 15.0
    light: float = 0.15
    hue: float = 0.1
    noise: tuple[float, float] = (2.0, 8.0)


@dataclass(frozen=True)
class Placed:
    """An object: its region (0 to 8, row by row), its centre as shares of the picture's width and height, its side as a
    share of the longer of the two; angle and colours as in Level."""

    name: str
    region: int
    x: float
    y: float
    size: float
    angle: float
    light: float
    hue: float


@dataclass(frozen=True)
class Scene:
    """Width and height in pixels; ``paint_seed`` decides texture and noise."""

    seed: int
    width: int
    height: int
    background: str
    objects: tuple[Placed, ...]
    paint_seed: int
    level: Level


@dataclass(frozen=True)
class Question:
    """One question; ``kind`` is one of KINDS. ``unseen``: it hangs on an object in a region where training never shows
    that object."""

    kind: str
    text: str
    answer: str
    unseen: bool


def plural(name: str) -> str:
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2] not in "aeiou" else name + "s"


def is_unseen(name: str, region: int) -> bool:
    """Every object has one region in which it is never seen in training."""
    return NAMES.index(name) * 4 % 9 == region


def make_scene(seed: int, level: Level | None = None) -> Scene:
    """The scene of this seed. Seeds of training hold no unseen pair of object and region."""
    level = level or Level()
    rng = np.random.default_rng([VERSION, 18, seed])
    count = int(rng.integers(1, 10))
    regions = rng.permutation(9)[:count]
    names = _names(rng, count)
    if seed not in SEEDS["heldout"]:
        for at, region in enumerate(regions):
            while is_unseen(names[at], int(region)):
                names[at] = str(rng.choice(NAMES))
    width, height = (int(side) for side in rng.integers(448, 577, 2))
    objects = tuple(
        _placed(rng, name, int(region), (width, height), level) for name, region in zip(names, regions, strict=True)
    )
    background = str(rng.choice(list(BACKGROUNDS)))
    return Scene(seed, width, height, background, objects, int(rng.integers(2**31)), level)


def _names(rng: np.random.Generator, count: int) -> list[str]:
    """One name that comes several times, mostly, others that look like it, and others."""
    first = str(rng.choice(NAMES))
    again = min(count, int(rng.choice([1, 2, 3, 4], p=[0.25, 0.25, 0.25, 0.25])))
    alike = sorted({name for group in ALIKE if first in group for name in group} - {first})
    pool = [*rng.permutation(alike)[: int(rng.integers(0, 3))], *rng.permutation([n for n in NAMES if n != first])]
    others = list(dict.fromkeys(str(name) for name in pool))[: count - again]
    return [first] * again + others


def _placed(rng: np.random.Generator, name: str, region: int, sides: tuple[int, int], level: Level) -> Placed:
    """Somewhere in the region, at most a tenth of the object beyond its edge."""
    size = float(np.exp(rng.uniform(*np.log(level.size))))
    room = [max(0.0, 1 / 6 - 0.4 * size * max(sides) / side) for side in sides]
    x = (region % 3 + 0.5) / 3 + float(rng.uniform(-room[0], room[0]))
    y = (region // 3 + 0.5) / 3 + float(rng.uniform(-room[1], room[1]))
    angle, light, hue = (float(rng.uniform(-1, 1)) * most for most in (level.angle, level.light, level.hue))
    return Placed(name, region, x, y, size, angle, light, hue)


def paint(scene: Scene) -> Image.Image:
    """The picture, RGB. The same scene gives the same pixels."""
    rng = np.random.default_rng([VERSION, 19, scene.paint_seed])
    colour = np.array(BACKGROUNDS[scene.background], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
    texture = colour + rng.normal(0, float(rng.uniform(0, 14)), (5, 5, 1)).astype(np.float32)
    canvas = _image(texture).resize((scene.width, scene.height), Image.Resampling.BICUBIC)
    for placed in scene.objects:
        tile = _tile(placed, max(scene.width, scene.height))
        corner = (round(placed.x * scene.width - tile.width / 2), round(placed.y * scene.height - tile.height / 2))
        canvas.paste(tile, corner, tile)
    sigma = np.float32(rng.uniform(*scene.level.noise))
    noise = (rng.standard_normal((scene.height, scene.width, 1), dtype=np.float32) * sigma).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))


def _tile(placed: Placed, longer: int) -> Image.Image:
    """The sprite in its size, angle and colours: RGBA."""
    side = round(placed.size * longer)
    tile = sprite(_IDS[NAMES.index(placed.name)]).resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(tile.rotate(placed.angle, Image.Resampling.BILINEAR, expand=True), np.float32)
    colours = pixels[:, :, :3] @ hue_rotation(placed.hue) + 128 * placed.light
    return _image(np.concatenate([colours, pixels[:, :, 3:]], axis=2))


def _image(pixels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))


def ask(scene: Scene, turn: int = 0, each: int = 3) -> list[Question]:
    """At most ``each`` questions of every kind; ``turn`` varies them."""
    rng = np.random.default_rng([VERSION, 20, scene.seed, turn])
    names = [placed.name for placed in scene.objects]
    unseen = {placed.name for placed in scene.objects if is_unseen(placed.name, placed.region)}
    order = [scene.objects[int(at)] for at in rng.permutation(len(names))]
    found = [
        Question("what", f"What is in the {PLACES[one.region]}?", one.name, is_unseen(one.name, one.region))
        for one in order[:each]
    ]
    order = [scene.objects[int(at)] for at in rng.permutation(len(names))]
    once = [one for one in order if names.count(one.name) == 1]
    found += [
        Question("where", f"Where is the {one.name}?", PLACES[one.region], is_unseen(one.name, one.region))
        for one in once[:each]
    ]
    several = sorted({name for name in names if names.count(name) > 1})
    alike = sorted({name for group in ALIKE if set(group) & set(names) for name in group} - set(names))
    absent = alike if alike and rng.random() < 0.5 else sorted(set(NAMES) - set(names))
    single = [one.name for one in once]
    asked = dict.fromkeys([*several, str(rng.choice(absent)), *(str(n) for n in rng.permutation(single))])
    for name in [name for name in asked if names.count(name) < len(NUMBERS)][:each]:
        text = f"How many {plural(name)} are there?"
        found.append(Question("how many", text, NUMBERS[names.count(name)], name in unseen))
    return found


def corpus() -> list[str]:
    """Everything that can be asked and answered: what the vocabulary has to hold."""
    lines = [f"What is in the {place}? {place} {' '.join(NUMBERS)}" for place in PLACES]
    return lines + [f"Where is the {name}? How many {plural(name)} are there? {name}" for name in NAMES]
