"""What is learned from: pictures, and questions about them with their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from vlmexport.calibrate import Sample
from vlmexport.calibrate.datasets import read
from vlmexport.calibrate.samples import image_hash
from vlmexport.demo.heldout import heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.demo.questions import Question, ask
from vlmexport.demo.scenes import TRAIN_SEEDS, TRAINING, VERSION, Scene, make_scene
from vlmexport.errors import UsageError

SCENES = 1000
TURNS = 16
"""Most questions about a picture that stand in one sequence."""

CAPTIONS = ("what", "describe", "background", "count")
"""Kinds of questions about scenes that captions answer: what the first stages learn from."""

Turns = list[tuple[str, str]]
"""Questions and answers."""


@dataclass(frozen=True)
class Lesson:
    """A picture; ``turns`` gives what is asked about it in an epoch. The name tells it from the others, and ``content``
    from another picture of the same name."""

    name: str
    load: Callable[[], Image.Image] = field(repr=False)
    turns: Callable[[int], Turns] = field(repr=False)
    content: Callable[[], str] = field(repr=False)


def lessons(data: str, stage: str) -> list[Lesson]:
    """All of a data set.

    Args:
        data: ``scenes``, ``scenes:N``, or a file or folder that ``vlmexport check --data`` takes.

    Raises:
        UsageError: it cannot be read, or no question in it has an answer.
    """
    name, _, count = data.partition(":")
    if name == "scenes" and not Path(data).exists():
        if count and not (count.isdecimal() and 0 < int(count) <= len(TRAIN_SEEDS)):
            raise UsageError(f"--data {data} names no number of scenes", "write it like scenes:1000")
        kinds = None if stage == "instruct" else CAPTIONS
        seeds = TRAIN_SEEDS[: int(count or SCENES)]
        return [_scene(seed, kinds) for seed in seeds]
    found = _from_samples([sample for sample in read(Path(data)) if sample.answer])
    if not found:
        raise UsageError(f"{data} holds no question with an answer", "training needs answers or captions")
    return found


def heldout_lessons(scenes: int) -> list[tuple[Lesson, list[Question]]]:
    """Held-out scenes with every question there is about them."""
    return [_heldout(scene) for scene in heldout_scenes(scenes)]


def _heldout(scene: Scene) -> tuple[Lesson, list[Question]]:
    questions = heldout_questions(scene, None)
    turns = [(question.text, question.answer) for question in questions]
    name = f"heldout-{scene.seed}"
    return Lesson(name, partial(paint, scene), lambda _: turns, partial(str, f"{name} {VERSION}")), questions


def _scene(seed: int, kinds: Sequence[str] | None) -> Lesson:
    name = f"scene-{seed}"
    return Lesson(name, partial(_painted, seed), partial(_asked, seed, kinds), partial(str, f"{name} {VERSION}"))


def _painted(seed: int) -> Image.Image:
    return paint(make_scene(seed, TRAINING))


def _asked(seed: int, kinds: Sequence[str] | None, epoch: int) -> Turns:
    asked = ask(make_scene(seed, TRAINING), turn=epoch)
    return [(question.text, question.answer) for question in asked if kinds is None or question.kind in kinds]


def _from_samples(samples: Sequence[Sample]) -> list[Lesson]:
    """Questions about one image together, ``TURNS`` at most."""
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    return [
        Lesson(name, some[0].image, partial(_answered, some[start : start + TURNS]), partial(image_hash, some[0]))
        for name, some in by_image.items()
        for start in range(0, len(some), TURNS)
    ]


def _answered(samples: Sequence[Sample], epoch: int) -> Turns:
    """Of several right answers another one each epoch."""
    return [(sample.question, sample.answers[epoch % len(sample.answers)]) for sample in samples]
