"""Held-out samples: scenes of seeds that neither training nor calibration ever sees, made when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmexport.demo.paint import paint
from vlmexport.demo.questions import Question, ask
from vlmexport.demo.scenes import HELDOUT_SEEDS, VERSION, Scene, make_scene

SCENES = 250
QUESTIONS_PER_SCENE = 4


@dataclass(frozen=True)
class Sample:
    """One held-out question about one picture (RGB, 336×336)."""

    seed: int
    image: Image.Image
    question: Question


def heldout_scenes(count: int = SCENES) -> Iterator[Scene]:
    """The first `count` held-out scenes."""
    for seed in HELDOUT_SEEDS[:count]:
        yield make_scene(seed)


def heldout_questions(scene: Scene, count: int | None = QUESTIONS_PER_SCENE) -> list[Question]:
    """`count` questions of different kinds, picked by the scene's seed; with None every question there is."""
    asked = ask(scene)
    if count is None:
        return asked
    rng = np.random.default_rng([VERSION, 3, scene.seed])
    picked: dict[str, Question] = {}
    for index in rng.permutation(len(asked)):
        picked.setdefault(asked[int(index)].kind, asked[int(index)])
    # Kinds in random order, not in the order drawn: several yes/no questions would come first too often.
    kinds = sorted(picked)
    order = [kinds[int(index)] for index in rng.permutation(len(kinds))]
    return [picked[kind] for kind in order[:count]]


def heldout_samples(scenes: int = SCENES, questions: int | None = QUESTIONS_PER_SCENE) -> Iterator[Sample]:
    """Samples scene by scene; the picture of a scene is painted once."""
    for scene in heldout_scenes(scenes):
        image = paint(scene)
        for question in heldout_questions(scene, questions):
            yield Sample(scene.seed, image, question)
