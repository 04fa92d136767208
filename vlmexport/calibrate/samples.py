"""Samples: an image and a question. The calibration set, and the held-out part that verdicts are taken on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlmexport.demo.heldout import heldout_questions, heldout_scenes
from vlmexport.demo.paint import paint
from vlmexport.demo.scenes import VERSION
from vlmexport.errors import CheckpointError, UsageError
from vlmexport.processing.images import read_image, rgb
from vlmexport.processing.messages import Message, Messages, asked

Task = Literal["exact", "vqa", "yes_no", "caption"]
"""How an answer is scored."""


@dataclass(frozen=True)
class Shown:
    """A further image of a sample; fields as in ``Sample``."""

    image_id: str
    load: Callable[[], Image.Image] = field(repr=False)
    file: Path | None = None


@dataclass(frozen=True)
class Sample:
    """One question about an image, or about several, in a conversation.

    Attributes:
        question: the last text of the user.
        answer: the text that is right, where one is known; ``other_answers`` are right as well.
        file: that the image is read from; None where it is made.
        drawn: what a made image follows from, as its seed.
        more: further images, in the order of the conversation.
        conversation: what was said, the question included; empty where nothing was said before it.
    """

    id: str
    image_id: str
    question: str
    load: Callable[[], Image.Image] = field(repr=False)
    answer: str | None = None
    kind: str | None = None
    other_answers: tuple[str, ...] = ()
    task: Task = "exact"
    file: Path | None = None
    drawn: str | None = None
    more: tuple[Shown, ...] = ()
    conversation: tuple[Message, ...] = ()

    @property
    def messages(self) -> Messages:
        """The conversation up to the question: the question itself behind the images where nothing more was said."""
        return self.conversation or asked(self.question, 1 + len(self.more))

    def alone(self) -> list[Sample]:
        """The question about each of its images by itself, in their order."""
        first = replace(self, more=(), conversation=())
        rest = [replace(first, image_id=one.image_id, load=one.load, file=one.file, drawn=None) for one in self.more]
        return [first, *rest]

    def facts(self) -> list[Any]:
        """What is asked and answered, for a hash."""
        said = [[one.image_id for one in self.alone()], [message.document() for message in self.messages]]
        return [self.id, self.question, *(said if self.more or self.conversation else ())]

    @property
    def answers(self) -> tuple[str, ...]:
        """All that are right."""
        return () if self.answer is None else (self.answer, *self.other_answers)

    def image(self) -> Image.Image:
        """The RGB image, upright, whatever ``load`` opens.

        Raises:
            UsageError: its numbers do not say what is white.
        """
        image = self.load()
        return image if image.mode == "RGB" else rgb(image, f"image {self.image_id}")


def image_hashes(samples: Sequence[Sample]) -> dict[str, str]:
    """Image id → what tells its content: SHA-256 of its file, what it is drawn from, else SHA-256 of its pixels.

    Raises:
        UsageError: a file is missing.
    """
    found: dict[str, str] = {}
    for sample in samples:
        for one in sample.alone():
            if one.image_id not in found:
                found[one.image_id] = image_hash(one)
    return found


def image_hash(sample: Sample) -> str:
    """What tells the content of one image; errors as ``image_hashes``."""
    if sample.file is not None:
        return file_hash(sample.file)
    if sample.drawn is not None:
        return sample.drawn
    image = sample.image()
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file; one that is as it was is read once a process.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        status = path.stat()
        return _file_hash(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "check the path") from error


@cache
def _file_hash(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    images: list[dict[str, Any]] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["entries"]
    if limit is not None and limit > len(images):
        raise UsageError(f"the calibration set has {len(images)} samples, {limit} were asked for", "ask for fewer")
    samples = []
    for turn, entry in enumerate(images[:limit]):
        prompts = entry["prompts"]
        question = prompts[turn % len(prompts)]
        file, name = folder / entry["file"], f"{entry['file']}#{turn % len(prompts)}"
        load = partial(_read_checked, file, entry["sha256"])
        samples.append(Sample(name, entry["file"], question, load, file=file))
    return samples


def calibration_hashes(ids: Sequence[str]) -> list[str]:
    """SHA-256 of the image files of samples of the calibration set; of other samples nothing is known."""
    names = {name.rpartition("#")[0] for name in ids}
    manifest = json.loads((calibration_folder() / "manifest.json").read_text(encoding="utf-8"))
    return sorted(entry["sha256"] for entry in manifest["entries"] if entry["file"] in names)


def _read_checked(path: Path, sha256: str) -> Image.Image:
    if file_hash(path) != sha256:
        raise CheckpointError(f"{path} is not the file its manifest names", "install vlmexport again")
    return read_image(path)


def heldout_samples(limit: int | None = None, by_image: bool = False) -> list[Sample]:
    """Questions about scenes that neither training nor calibration has seen, made from their seeds.

    Turn by turn: one question of each scene first, then a second of each, and so on; or all of a scene, then the next.

    Raises:
        UsageError: more samples asked for than there are.
    """
    turns: list[list[Sample]] = []
    for scene in heldout_scenes():
        for turn, question in enumerate(heldout_questions(scene)):
            if turn == len(turns):
                turns.append([])
            name = f"scene-{scene.seed}"
            load = partial(paint, scene)
            turns[turn].append(
                Sample(
                    f"{name}#{turn}", name, question.text, load, answer=question.answer, kind=question.kind,
                    drawn=f"scene {VERSION}.{scene.seed}",
                )
            )  # fmt: skip
    samples = [sample for turn in (zip(*turns, strict=True) if by_image else turns) for sample in turn]
    if limit is not None and limit > len(samples):
        raise UsageError(f"the held-out part has {len(samples)} samples, {limit} were asked for", "ask for fewer")
    return samples[:limit]
