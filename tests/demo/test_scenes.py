"""Scenes are decided by their seed, and questions say what the scene holds."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from vlmexport.demo import scenes
from vlmexport.demo.heldout import heldout_questions, heldout_samples, heldout_scenes
from vlmexport.demo.paint import paint, paint_with_alpha
from vlmexport.demo.questions import FAMILIES, KINDS, NUMBERS, SQUARES, ask
from vlmexport.demo.scenes import BACKGROUNDS, HELDOUT_SEEDS, SIDE, make_scene
from vlmexport.demo.sprites import article, sprite, sprite_names

PINNED_MEAN = (138.08, 136.25, 139.05)  # red, green, blue
SOME = [make_scene(seed) for seed in HELDOUT_SEEDS[:60]]


def test_seed_ranges_are_disjoint() -> None:
    ranges = [value for name, value in vars(scenes).items() if name.endswith("_SEEDS")]
    assert len(ranges) == 5
    for a, b in itertools.combinations(ranges, 2):
        assert a.stop <= b.start or b.stop <= a.start


def test_same_seed_same_scene_and_pixels() -> None:
    first, again = make_scene(5), make_scene(5)
    assert first == again
    assert paint(first).tobytes() == paint(again).tobytes()
    assert paint(first).tobytes() != paint(make_scene(6)).tobytes()


def test_generator_version_pins_the_pixels() -> None:
    """A change of these pixels needs a new scenes.VERSION; a new Pillow or numpy may move single values."""
    mean = np.asarray(paint(make_scene(HELDOUT_SEEDS[0])), np.float64).mean((0, 1))
    assert scenes.VERSION == 1
    assert mean == pytest.approx(PINNED_MEAN, abs=0.5)


def test_picture_and_alphas() -> None:
    image, alphas = paint_with_alpha(SOME[0])
    assert image.mode == "RGB"
    assert image.size == (SIDE, SIDE)
    assert len(alphas) == len(SOME[0].objects)
    for alpha, placed in zip(alphas, SOME[0].objects, strict=True):
        ys, xs = np.nonzero(np.asarray(alpha) > 128)
        assert abs(xs.mean() - placed.x) < placed.size / 3
        assert abs(ys.mean() - placed.y) < placed.size / 3


def test_objects_differ_and_stay_inside() -> None:
    for scene in SOME:
        assert 1 <= len(scene.objects) <= 4
        assert len({placed.class_id for placed in scene.objects}) == len(scene.objects)
        for placed in scene.objects:
            assert placed.size * 0.4 <= min(placed.x, placed.y)
            assert max(placed.x, placed.y) <= SIDE - placed.size * 0.4


def test_answers_agree_with_the_scene() -> None:
    for scene in SOME:
        names = {placed.name: placed for placed in scene.objects}
        for question in ask(scene):
            match question.kind:
                case "what":
                    assert list(names) == [question.answer]
                case "count":
                    assert NUMBERS.index(question.answer) + 1 == len(names)
                case "background":
                    assert question.answer == scene.background
                case "exists":
                    asked = question.text.removesuffix("?").split()[-1]
                    assert question.answer == ("yes" if asked in names else "no")
                case "left":
                    assert names[question.answer].x == min(placed.x for placed in scene.objects)
                case "right":
                    assert names[question.answer].x == max(placed.x for placed in scene.objects)
                case "above":
                    assert names[question.answer].y == min(placed.y for placed in scene.objects)
                case "below":
                    assert names[question.answer].y == max(placed.y for placed in scene.objects)
                case "where":
                    placed = names[question.text.removesuffix("?").split()[-1]]
                    _, row, _, column = question.answer.split()
                    assert int(placed.y * SQUARES / SIDE) == NUMBERS.index(row)
                    assert int(placed.x * SQUARES / SIDE) == NUMBERS.index(column)
                case "describe":
                    places = [
                        question.answer.index(article(placed.name))
                        for placed in sorted(names.values(), key=lambda o: o.x)
                    ]
                    assert places == sorted(places)
                    assert question.answer.endswith(f" on {scene.background}")


def test_every_kind_is_asked_and_yes_is_half() -> None:
    asked = [question for scene in SOME for question in ask(scene)]
    assert {question.kind for question in asked} == set(KINDS)
    answers = [question.answer for question in asked if question.kind == "exists"]
    assert 0.35 < answers.count("yes") / len(answers) < 0.6


def test_families_name_sprites() -> None:
    assert {name for family in FAMILIES for name in family} <= set(sprite_names())
    assert len(set(sprite_names())) == len(sprite_names()) >= 100
    assert len({hashlib.sha256(sprite(i).tobytes()).digest() for i in range(len(sprite_names()))}) == len(
        sprite_names()
    )
    assert not set(sprite_names()) & set(BACKGROUNDS)


def test_heldout_picks_are_fixed_and_of_different_kinds() -> None:
    for scene in heldout_scenes(20):
        picked = heldout_questions(scene)
        assert picked == heldout_questions(scene)
        assert len({question.kind for question in picked}) == len(picked) == 4
    samples = list(heldout_samples(scenes=3))
    assert [sample.seed for sample in samples] == [seed for seed in HELDOUT_SEEDS[:3] for _ in range(4)]


def test_too_many_scenes_is_an_error() -> None:
    with pytest.raises(ValueError, match="range of 10 seeds"):
        list(scenes.scenes(range(10), 11))
