"""Scenes: which sprites lie where on which background, decided by one seed.

A scene is 336×336 pixels with one to four sprites of different classes. `make_scene(seed)` always gives the same
scene; the pixels come from `paint.paint(scene)`, the questions from `questions.ask(scene)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlmexport.demo.sprites import sprite_names

VERSION = 1  # of the generator: raise it when the same seed would give another scene
SIDE = 336  # pixels

# The one place that says which seeds are for what. The ranges are disjoint.
TOWER_SEEDS = range(1_000_000)
TRAIN_SEEDS = range(1_000_000, 2_000_000)
VALIDATION_SEEDS = range(2_000_000, 2_100_000)
HELDOUT_SEEDS = range(3_000_000, 3_100_000)
CALIBRATION_SEEDS = range(4_000_000, 4_100_000)

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 60),
    "green": (50, 150, 60),
    "blue": (50, 90, 210),
    "purple": (130, 60, 170),
    "pink": (245, 160, 195),
    "brown": (120, 75, 40),
    "black": (25, 25, 28),
    "white": (242, 242, 242),
    "gray": (135, 135, 135),
    "cyan": (80, 205, 215),
}


@dataclass(frozen=True)
class Difficulty:
    """How hard the scenes are. Lengths in pixels, angles in degrees, colour changes as fractions."""

    size: tuple[float, float] = (92.0, 140.0)
    angle: float = 20.0
    brightness: float = 0.2
    contrast: float = 0.2
    hue: float = 0.08
    noise: tuple[float, float] = (2.0, 8.0)
    texture: float = 22.0
    bar_chance: float = 0.15
    bar_width: tuple[int, int] = (6, 12)
    counts: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
    reading_order: float = 0.75  # share of scenes whose sprites stand at clearly different x and y


# The model is trained on harder scenes than it is asked about.
TRAINING = Difficulty(
    size=(64.0, 136.0), angle=30.0, brightness=0.22, contrast=0.25, hue=0.25, noise=(4.0, 18.0), bar_chance=0.35
)


@dataclass(frozen=True)
class Placed:
    """One sprite in a scene: centre and side in pixels, angle in degrees, colour changes."""

    class_id: int
    x: float
    y: float
    size: float
    angle: float
    brightness: float
    contrast: float
    hue: float

    @property
    def name(self) -> str:
        return sprite_names()[self.class_id]


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `paint_seed` decides texture, occluding bars and noise."""

    seed: int
    objects: tuple[Placed, ...]
    background: str
    paint_seed: int
    difficulty: Difficulty


def make_scene(seed: int, difficulty: Difficulty | None = None) -> Scene:
    """The scene of this seed."""
    level = difficulty or Difficulty()
    rng = np.random.default_rng([VERSION, seed])
    count = int(rng.choice(4, p=level.counts)) + 1
    classes = rng.choice(len(sprite_names()), size=count, replace=False)
    layout = _layout(rng, count, level)
    objects = tuple(
        Placed(
            class_id=int(class_id),
            x=x,
            y=y,
            size=size,
            angle=float(rng.uniform(-level.angle, level.angle)),
            brightness=float(rng.uniform(-level.brightness, level.brightness)),
            contrast=float(rng.uniform(-level.contrast, level.contrast)),
            hue=float(rng.uniform(-level.hue, level.hue)),
        )
        for class_id, (x, y, size) in zip(classes, layout, strict=True)
    )
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    return Scene(seed, objects, background, int(rng.integers(2**31)), level)


def scenes(seeds: range, count: int, difficulty: Difficulty | None = None) -> Iterator[Scene]:
    """The first `count` scenes of a seed range."""
    if count > len(seeds):
        raise ValueError(f"{count} scenes asked of a range of {len(seeds)} seeds")
    for seed in seeds[:count]:
        yield make_scene(seed, difficulty)


def _layout(rng: np.random.Generator, count: int, level: Difficulty) -> list[tuple[float, float, float]]:
    """Centres and sides of `count` sprites that hardly overlap; rejection sampling with shrinking sides."""
    apart = 30.0 if rng.random() < level.reading_order else 0.0
    low, high = level.size
    for attempt in range(1000):
        top = max(low, high * (1 - attempt / 400))
        sizes = rng.uniform(low, max(top, low + 1), size=count)
        centres = rng.uniform(sizes[:, None] * 0.48, SIDE - sizes[:, None] * 0.48, size=(count, 2))
        if _separate(centres, sizes, apart if attempt < 600 else 0.0):
            return [(float(x), float(y), float(s)) for (x, y), s in zip(centres, sizes, strict=True)]
    raise RuntimeError("no layout found: the sprites of this difficulty do not fit")


def _separate(centres: np.ndarray, sizes: np.ndarray, apart: float) -> bool:
    """Whether the sprites keep clear of each other, and their x and y differ by `apart` pixels."""
    for i in range(len(sizes)):
        for j in range(i):
            dx, dy = np.abs(centres[i] - centres[j])
            if max(dx, dy) < 0.46 * (sizes[i] + sizes[j]) or min(dx, dy) < apart:
                return False
    return True
