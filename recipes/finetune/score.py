"""Exact match of a model's answers about held-out scenes, by kind of question.

    python recipes/finetune/score.py MODEL [--qat BUNDLE] [--features DIR]

With ``--qat`` weights and inputs are rounded as in that bundle of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
from batches import answer_logits, pack
from frozen import Features
from lessons import heldout_lessons
from qat import FakeQuantization, tower

from vlmexport.console import Console
from vlmexport.demo.heldout import SCENES
from vlmexport.errors import VlmExportError
from vlmexport.model import VLM, load
from vlmexport.pipeline import open_whole
from vlmexport.source.checkpoint import Checkpoint

Scores = dict[str, dict[str, float]]
BATCH = 10


@torch.inference_mode()
def scores(vlm: VLM, checkpoint: Checkpoint, features: Features, scenes: int) -> Scores:
    """Per kind and over all: questions asked and share answered right, by the model of ``checkpoint``."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    asked = heldout_lessons(scenes)
    for at in range(0, len(asked), BATCH):
        some = asked[at : at + BATCH]
        batch = pack(checkpoint, [lesson.turns(0) for lesson, _ in some])
        found = batch.right(answer_logits(vlm, features([lesson for lesson, _ in some]), batch))
        questions = [question for _, those in some for question in those]
        for question, good in zip(questions, found.tolist(), strict=True):
            for kind in (question.kind, "all"):
                total[kind] += 1
                right[kind] += good
    return {kind: {"questions": total[kind], "exact": round(right[kind] / total[kind], 4)} for kind in sorted(total)}


def score(model: str, scenes: int = SCENES, features: Path | None = None, bundle: Path | None = None) -> Scores:
    """Of a checkpoint, rounded as in a bundle of it where one is given; errors as theirs."""
    checkpoint = open_whole(model)
    vlm = load(checkpoint, resident=True)
    qat = FakeQuantization(bundle, checkpoint) if bundle else None
    with qat.applied(vlm) if qat else nullcontext():
        return scores(vlm, checkpoint, tower(vlm, checkpoint, qat, features, "scenes"), scenes)


def main() -> None:
    """Print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--qat", type=Path, metavar="BUNDLE")
    given = parser.parse_args()
    try:
        print(json.dumps(score(given.model, given.scenes, given.features, given.qat), indent=1))
    except VlmExportError as error:
        Console().error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
