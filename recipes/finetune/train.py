"""Fine-tune a vision-language model that vlmexport opens; what comes out is a checkpoint of the same layout.

    python recipes/finetune/train.py demo -o tuned --data scenes --stage instruct

Started again with the same options, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from settings import STAGES, Settings

from vlmexport.console import Console
from vlmexport.errors import VlmExportError


def arguments(given: list[str] | None = None) -> Settings:
    """The command line as settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", help="a folder, a Hub id, or demo")
    add("-o", "--output", type=Path, required=True, help="folder of the new checkpoint")
    add("--vision-tower", help="a CLIP folder, for a model that does not carry its tower")
    add("--data", default="scenes", help="scenes, scenes:N, LLaVA's JSON, COCO's captions, questions, or a folder")
    add("--stage", choices=STAGES, default="instruct", help="what learns: projector alone, or language model too")
    add("--teacher", help="a model of the same tokenizer whose answers are imitated")
    add("--teacher-weight", type=float, default=0.5, help="of the teacher in the loss; the rest is the answers'")
    add("--temperature", type=float, default=2.0, help="of teacher and student in their comparison")
    add("--prune", type=float, default=0.0, help="share of the weights of each matrix that become 0")
    add("--prune-heads", type=float, default=0.0, help="share of the heads that are left out")
    add("--prune-channels", type=float, default=0.0, help="share of the MLP's channels that are left out")
    add("--tie", action="store_true", help="the output layer takes the embedding's table")
    add("--mixed", choices=("bf16",), help="products in bfloat16")
    add("--qat", type=Path, metavar="BUNDLE", help="round as this bundle of the model does while training")
    add("--steps", type=int, default=300)
    add("--batch", type=int, default=4, help="pictures of a step, each with all its questions")
    add("--rate", type=float, help="learning rate, in place of the stage's own")
    add("--seed", type=int, default=0)
    add("--features", type=Path, metavar="DIR", help="keep the frozen tower's features there, for the next time")
    add("--save-every", type=int, default=100, help="steps between states that a later run resumes from")
    add("--threads", type=int, default=2)
    add("--force", action="store_true", help="replace a checkpoint that is there")
    return Settings(**vars(parser.parse_args(given)))


def main() -> None:
    """Train; on a fault one line, and its exit code."""
    console = Console()
    try:
        from training import run

        print(run(arguments(), console))
    except VlmExportError as error:
        console.error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
