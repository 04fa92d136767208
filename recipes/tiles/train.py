"""Train the model whose questions need the tiles, from random weights; it goes on from its last checkpoint.

    python -m recipes.tiles.train                       # all stages; checkpoints and views in build/tiles
    python -m recipes.tiles.train --smoke --work out    # a few steps of everything

Stages: render → see → answer → export.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from recipes.tiles import answer, see
from recipes.tiles.evaluate import SCENES
from recipes.tiles.export import MODEL, export
from recipes.tiles.views import Views, render

ROOT = Path(__file__).parents[2]
STAGES = ("render", "see", "answer", "export")


def log(work: Path, text: str) -> None:
    """To the screen and to work/log.txt."""
    line = f"{time.strftime('%H:%M:%S')} {text}"
    print(line, flush=True)
    with (work / "log.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def views(work: Path, smoke: bool) -> tuple[Views, Views, Views]:
    """Of training in 3 × 3 tiles, in 2 × 2 tiles, and of validation."""
    many, some, few = (24, 8, 4) if smoke else (3000, 800, 120)
    say, folder = partial(log, work), work / "views"
    three, two = render(folder, "train", 3, many, say), render(folder, "train", 2, some, say)
    return three, two, render(folder, "validation", 3, few, say)


def run(work: Path, stages: list[str], smoke: bool) -> None:
    """The stages, in order; each starts from what the work folder holds."""
    three, two, unseen = views(work, smoke)
    if "see" in stages:
        plan = see.Plan(steps=2, batch=8, check_every=2) if smoke else see.Plan()
        see.see(work, plan, three, two, unseen, partial(log, work))
    if "answer" in stages:
        lessons = answer.Plan(steps=2, batch=2, check_every=2) if smoke else answer.Plan()
        answer.answer(work, lessons, three, two, unseen, partial(log, work))
    if "export" in stages:
        out = work / "model" if smoke else MODEL
        export(work, out, scenes=4 if smoke else SCENES)
        log(work, f"exported to {out}")


def main() -> None:
    """Run the stages that are asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiles", help="checkpoints and rendered views")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to test the program")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    run(arguments.work, arguments.stage or list(STAGES), arguments.smoke)


if __name__ == "__main__":
    main()
