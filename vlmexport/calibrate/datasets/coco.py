"""COCO's captions: ``images`` and ``annotations``, several captions an image."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from vlmexport.calibrate.datasets.images import CAPTION_PROMPT, find, sample
from vlmexport.calibrate.samples import Sample

NAME = "COCO's captions"


def recognises(document: Any) -> bool:
    """Whether it has COCO's two lists."""
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def samples(document: Any, path: Path) -> list[Sample]:
    """One sample an image that has captions.

    Images lie beside the file, in ``images/`` there, or where COCO's archives put them: ``val2017/`` beside the
    ``annotations/`` that holds ``captions_val2017.json``.
    """
    captions: dict[int, list[str]] = defaultdict(list)
    for annotation in document["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"].strip())
    split = path.stem.removeprefix("captions_")
    folders = (path.parent, path.parent / "images", path.parent / split, path.parent.parent / split)
    found = []
    for entry in document["images"]:
        name, texts = entry["file_name"], captions[entry["id"]]
        if texts:
            found.append(sample(name, 0, find(name, path, folders), CAPTION_PROMPT, texts, "caption"))
    return found
