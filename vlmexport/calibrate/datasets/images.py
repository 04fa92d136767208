"""Images of a data set: found beside the file that names them, and made into samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmexport.calibrate.samples import Sample, Shown, Task
from vlmexport.errors import UsageError
from vlmexport.processing.images import read_image
from vlmexport.processing.messages import Message

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."
"""LLaVA's prompt for captions."""
_SHORT = 5  # words: longer answers have many right wordings
_ANNOTATORS = 10  # of a VQA question


def find(name: str, beside: Path, folders: Sequence[Path]) -> Path:
    """The image of a name, in the first folder that has it.

    Raises:
        UsageError: none has.
    """
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked = ", ".join(str(folder) for folder in folders)
    raise UsageError(f"image {name} of {beside} is in none of {looked}", "put the images into one of these folders")


def find_all(names: Any, beside: Path) -> tuple[str, Path, dict[str, Path]]:
    """Name and file of the first image of an entry, and of the others: beside the file that names them, or in
    ``images/`` there.

    Args:
        names: what the entry says: a name, or several.

    Raises:
        UsageError: one is in neither.
        ValueError: there are none, or one of them twice.
    """
    listed = [str(name) for name in names] if isinstance(names, list) else [str(names)]
    found = {name: find(name, beside, (beside.parent, beside.parent / "images")) for name in listed}
    if len(found) < len(listed) or not found:
        raise ValueError(f"image is {names}")
    first, *_ = found
    return first, found.pop(first), found


def sample(
    name: str,
    number: int,
    path: Path,
    question: str,
    answers: Sequence[str],
    task: Task | None = None,
    more: Mapping[str, Path] | None = None,
    conversation: tuple[Message, ...] = (),
) -> Sample:
    """A question about an image file, or about several.

    Args:
        name: of the image in its data set.
        number: of the question among those of the data set about the image.
        answers: that are right; none where it is not known.
        task: how answers are scored; by their look where it is None.
        more: names and files of further images.
        conversation: what was said, the question included, where something was said before it.
    """
    first, *others = answers or (None,)
    return Sample(
        f"{name}#{number}", name, question, partial(read_image, path),
        answer=first, other_answers=tuple(others), task=task or _task(answers), file=path,
        more=tuple(Shown(one, partial(read_image, file), file) for one, file in (more or {}).items()),
        conversation=conversation,
    )  # fmt: skip


def _task(answers: Sequence[str]) -> Task:
    """Ten answers are a VQA question's, yes and no POPE's; a sentence is compared as captions are."""
    if len(answers) >= _ANNOTATORS:
        return "vqa"
    if answers and all(answer.strip(" .").lower() in ("yes", "no") for answer in answers):
        return "yes_no"
    return "caption" if any(len(answer.split()) > _SHORT for answer in answers) else "exact"
