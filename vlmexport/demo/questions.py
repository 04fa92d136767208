"""Questions about a scene, with their answers.

A question is asked only where the scene gives one clear answer: positions need a margin in pixels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from vlmexport.demo.scenes import BACKGROUNDS, SIDE, VERSION, Scene
from vlmexport.demo.sprites import article, sprite_names

KINDS = ("what", "left", "right", "above", "below", "count", "background", "exists", "where", "describe")
NUMBERS = ("one", "two", "three", "four", "five", "six")
SIDES = {
    "left": "What is on the left?",
    "right": "What is on the right?",
    "above": "What is at the top?",
    "below": "What is at the bottom?",
}
WHAT = "What is this?"
COUNT = "How many objects are there?"
BACKGROUND = "What color is the background?"
DESCRIBE = "Describe the picture."
SIDE_MARGIN = 28.0  # pixels between the outermost object and the next
ORDER_MARGIN = 24.0  # pixels between neighbours in reading order
SQUARES = 6  # rows and columns of "where": fine enough that it takes precise weights to tell them apart
SQUARE_MARGIN = 8.0  # pixels between an object's centre and the edge of its square, of 56

# Classes that look alike: half of the absent objects that are asked for come from here.
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("cat", "dog", "fox", "lion", "monkey", "pig", "cow", "rabbit", "panda"),
    ("chick", "parrot", "penguin", "owl", "flamingo"),
    ("crab", "lobster", "octopus", "fish", "whale"),
    ("spider", "bee", "ladybug", "butterfly", "snail"),
    ("turtle", "snake", "frog"),
    ("elephant", "giraffe", "camel", "zebra"),
    ("apple", "tomato", "strawberry", "cherry", "heart"),
    ("pear", "lemon", "banana", "corn", "avocado", "coconut"),
    ("broccoli", "tree", "clover", "palm", "cactus"),
    ("cookie", "donut", "pretzel", "bread", "burger"),
    ("sun", "star", "moon", "crown", "trophy", "bell"),
    ("cloud", "snowflake", "drop", "diamond", "ring"),
    ("car", "bus", "tractor", "train", "bicycle"),
    ("airplane", "rocket", "sailboat"),
    ("phone", "laptop", "camera", "television"),
    ("ghost", "skull", "alien", "robot", "snowman"),
    ("hat", "shirt", "dress", "boot", "glove"),
    ("hammer", "key", "pencil", "scissors", "microphone", "bone"),
)


@dataclass(frozen=True)
class Question:
    """One question; `kind` is one of KINDS."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, turn: int = 0, exists: int = 2, described: int = 2) -> list[Question]:
    """Every question the scene allows.

    `turn` varies the objects that are asked for, `exists` is the number of yes/no questions, and scenes of more than
    `described` objects are not described: the demo model learns longer lists, but not well enough to be asked.
    """
    rng = np.random.default_rng([VERSION, 2, scene.seed, turn])
    found = [Question("count", COUNT, NUMBERS[len(scene.objects) - 1])]
    found.append(Question("background", BACKGROUND, scene.background))
    if len(scene.objects) == 1:
        found.append(Question("what", WHAT, scene.objects[0].name))
    else:
        found += _sides(scene)
    found += _exists(scene, rng, exists)
    found += _where(scene)
    if len(scene.objects) <= described:
        found += _describe(scene)
    return found


def _sides(scene: Scene) -> list[Question]:
    found = []
    for kind, text in SIDES.items():
        horizontal, first = kind in ("left", "right"), kind in ("left", "above")
        order = sorted(scene.objects, key=lambda o: (o.x if horizontal else o.y) * (1 if first else -1))
        gap = abs(order[0].x - order[1].x) if horizontal else abs(order[0].y - order[1].y)
        if gap >= SIDE_MARGIN:
            found.append(Question(kind, text, order[0].name))
    return found


def _exists(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Half yes, half no in expectation; no object twice."""
    present = [placed.name for placed in scene.objects]
    found: dict[str, Question] = {}
    for _ in range(count):
        yes = rng.random() < 0.5
        name = str(rng.choice(present)) if yes else _absent(present, rng)
        found[name] = Question("exists", f"Is there {article(name)}?", "yes" if yes else "no")
    return list(found.values())


def _absent(present: list[str], rng: np.random.Generator) -> str:
    """A class that is not in the scene, often one that looks like one that is."""
    alike = sorted({n for family in FAMILIES if set(family) & set(present) for n in family} - set(present))
    pool = alike if alike and rng.random() < 0.5 else sorted(set(sprite_names()) - set(present))
    return str(rng.choice(pool))


def _where(scene: Scene) -> list[Question]:
    """The square of the picture, of SQUARES × SQUARES, in which an object's centre lies; once for every object."""
    side = SIDE / SQUARES

    def clear(value: float) -> bool:
        return SQUARE_MARGIN <= value % side <= side - SQUARE_MARGIN

    found = []
    for placed in scene.objects:
        if clear(placed.x) and clear(placed.y):
            place = f"row {NUMBERS[int(placed.y // side)]} column {NUMBERS[int(placed.x // side)]}"
            found.append(Question("where", f"Where is the {placed.name}?", place))
    return found


def _describe(scene: Scene) -> list[Question]:
    """The objects from left to right, and the background."""
    order = sorted(scene.objects, key=lambda placed: placed.x)
    if any(b.x - a.x < ORDER_MARGIN for a, b in itertools.pairwise(order)):
        return []
    names = [article(placed.name) for placed in order]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return [Question("describe", DESCRIBE, f"{listed} on {scene.background}")]


def corpus() -> list[str]:
    """One question and answer per line for every class, number and colour: what the tokenizer has to know."""
    lines = [f"{WHAT} {name}" for name in sprite_names()]
    lines += [f"Is there {article(name)}? yes no" for name in sprite_names()]
    lines += [f"Where is the {name}? row column {' '.join(NUMBERS)}" for name in sprite_names()]
    lines += [f"{text} {name}" for text in SIDES.values() for name in sprite_names()]
    lines += [f"{COUNT} {number}" for number in NUMBERS for _ in range(20)]
    lines += [f"{BACKGROUND} {colour}" for colour in BACKGROUNDS for _ in range(20)]
    lines += [f"{DESCRIBE} {article(n)}, {article(n)} and {article(n)} on {c}" for n, c in _pairs()]
    return lines


def _pairs() -> list[tuple[str, str]]:
    colours = list(BACKGROUNDS)
    return [(name, colours[index % len(colours)]) for index, name in enumerate(sprite_names())]
