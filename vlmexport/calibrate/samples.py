"""Samples: an image and a question. The calibration set, and the held-out part that verdicts are taken on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexport.demo.paint import paint
from vlmexport.demo.questions import Question, ask
from vlmexport.demo.scenes import HELDOUT_SEEDS, make_scene
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.model.pixels import read_image

HELDOUT_SCENES = 250


@dataclass(frozen=True)
class Sample:
    """One image with one question; ``answer`` is the expected text where it is known."""

    id: str
    image_id: str
    question: str
    load: Callable[[], Image.Image] = field(repr=False)
    answer: str | None = None
    kind: str | None = None

    def image(self) -> Image.Image:
        """The RGB image."""
        return self.load()


def calibration_folder() -> Path:
    """Where the calibration set lies: in the installed package, or in a checkout."""
    root = Path(__file__).parents[1]
    for folder in (root / "_data" / "calibration", root.parent / "calibration"):
        if (folder / "manifest.json").is_file():
            return folder
    raise UsageError("the calibration set that ships with vlmexport is missing", "install it again")


def calibration_samples(limit: int | None = None) -> list[Sample]:
    """The calibration set: one sample an image, the questions in turn.

    Raises:
        UsageError: more samples asked for than there are.
        CheckpointError: a file is not the one the manifest says.
    """
    folder = calibration_folder()
    images: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    if limit is not None and limit > len(images):
        raise UsageError(f"the calibration set has {len(images)} samples, {limit} were asked for", "ask for fewer")
    samples = []
    for turn, entry in enumerate(images[:limit]):
        prompts = entry["prompts"]
        question = prompts[turn % len(prompts)]
        load = partial(_read_checked, folder / entry["file"], entry["sha256"])
        samples.append(Sample(f"{entry['file']}#{turn % len(prompts)}", entry["file"], question, load))
    return samples


def _read_checked(path: Path, sha256: str) -> Image.Image:
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CheckpointError(f"{path} is not the file its manifest names", "install vlmexport again")
    return read_image(path)


def heldout_samples(limit: int | None = None) -> list[Sample]:
    """Questions about 250 scenes that neither training nor calibration has seen, made from their seeds.

    The first 250 samples are one question a scene, the next 250 a second one, and so on; kinds are mixed.

    Raises:
        UsageError: more samples asked for than there are.
    """
    queues = [_questions(seed) for seed in HELDOUT_SEEDS[:HELDOUT_SCENES]]
    samples = []
    for turn in range(max(len(queue) for queue in queues)):
        for seed, queue in zip(HELDOUT_SEEDS, queues, strict=False):
            if turn < len(queue):
                question = queue[turn]
                samples.append(
                    Sample(
                        id=f"scene-{seed}#{turn}",
                        image_id=f"scene-{seed}",
                        question=question.text,
                        load=partial(_paint, seed),
                        answer=question.answer,
                        kind=question.kind,
                    )
                )
    if limit is not None and limit > len(samples):
        raise UsageError(f"the held-out part has {len(samples)} samples, {limit} were asked for", "ask for fewer")
    return samples[:limit]


def _paint(seed: int) -> Image.Image:
    return paint(make_scene(seed))


def _questions(seed: int) -> list[Question]:
    """A scene's questions in a random order, one of each kind before a second of any."""
    questions = ask(make_scene(seed))
    order = np.random.default_rng(seed).permutation(len(questions))
    first: dict[str, Question] = {}
    rest = []
    for index in order:
        question = questions[index]
        if question.kind in first:
            rest.append(question)
        else:
            first[question.kind] = question
    return [*first.values(), *rest]
