"""Train the demo model from nothing: tower, projector, language model; resumable from the last checkpoint.

    python recipes/demo/train.py --work build/demo

Stages: tower → features → align → answer → export. Every stage starts from what the work folder holds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import stage_answer

ROOT = Path(__file__).parents[2]

# glibc gives large blocks back to the kernel after every step and pays for them in page faults; and the two
# thread pools of a backward pass should not give up their cores while they wait. Both are read at start only.
START = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "1073741824",
    "MALLOC_ARENA_MAX": "1",
    "OMP_WAIT_POLICY": "ACTIVE",
}

STAGES = ("tower", "features", "align", "answer", "export")


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def render_beside(folder: Path, seeds: range, shard: int) -> subprocess.Popen[bytes]:
    """Start the rendering process; the training reads its shards as they appear."""
    command = [sys.executable, str(Path(__file__).with_name("data.py")), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(seeds.start), str(seeds.stop), "--size", str(shard)], env=environment)


def run_tower(work: Path, smoke: bool) -> None:
    import stage_tower as stage

    plan = (
        stage.Plan(window_steps=2, whole_steps=1, window_batch=4, whole_batch=2, scenes=8, shard=8, unseen=4)
        if smoke
        else stage.Plan()
    )
    renderer = render_beside(work / "tower", stage.TOWER_SEEDS[: plan.scenes], plan.shard)
    try:
        stage.train_tower(work, plan, log)
    finally:
        renderer.terminate()


def answer_plan(smoke: bool) -> stage_answer.Plan:
    import stage_answer

    if not smoke:
        return stage_answer.Plan()
    return stage_answer.Plan(
        scenes=8,
        shard=8,
        validation=4,
        align_steps=2,
        align_batch=4,
        rounds=(3, 2),
        first_steps=1,
        batch=2,
        check_every=2,
    )


def run_features(work: Path, smoke: bool) -> None:
    import features
    from prompts import train_tokenizer

    plan = answer_plan(smoke)
    scenes = plan.scenes * len(plan.rounds)
    if not (work / "tokenizer.model").exists():
        train_tokenizer(work / "tokenizer.model")
    renderer = render_beside(work / "train", features.TRAIN_SEEDS[:scenes], plan.shard)
    try:
        features.compute_features(work, scenes, plan.validation, plan.shard, log)
    finally:
        renderer.terminate()


def run_align(work: Path, smoke: bool) -> None:
    import stage_answer

    if not (work / "align.pt").exists():
        stage_answer.align(work, answer_plan(smoke), log)


def run_answer(work: Path, smoke: bool) -> None:
    import stage_answer

    stage_answer.answer(work, answer_plan(smoke), log)


def run_export(work: Path, smoke: bool) -> None:
    from card import write_card
    from export import export

    out = work / "model" if smoke else ROOT / "vlmexport" / "demo" / "model"
    export(work, out)
    write_card(out, scenes=2 if smoke else 250)
    log(f"exported to {out}")


def main() -> None:
    """Run the stages that are asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "demo", help="checkpoints and rendered scenes")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (may be repeated)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to test the program")
    arguments = parser.parse_args()
    if any(os.environ.get(key) != value for key, value in START.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **START})
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    for stage in arguments.stage or STAGES:
        globals()[f"run_{stage}"](arguments.work, arguments.smoke)


if __name__ == "__main__":
    main()
