"""Checkpoint → a folder as ``save_pretrained`` writes it: float16 weights, processor, template, model card, scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from recipes.tiles.answer import Plan as AnswerPlan
from recipes.tiles.evaluate import evaluate, table
from recipes.tiles.model import new_model, processor
from recipes.tiles.scenes import NAMES, SEEDS, VERSION
from recipes.tiles.see import Plan as SeePlan

MODEL = Path(__file__).parents[2] / "models" / "tiles"


def export(work: Path, out: Path, scenes: int) -> None:
    """Write beside ``out``, then move it there as a whole."""
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    model = new_model(0)
    model.load_state_dict(torch.load(work / "answer.pt")["model"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.half().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    processor().save_pretrained(fresh)
    found = evaluate(fresh, scenes)
    (fresh / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (fresh / "README.md").write_text(card(parameters, found, scenes), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(out)


def card(parameters: int, found: dict[str, dict[str, dict[str, float]]], scenes: int) -> str:
    """README.md of the checkpoint."""
    see, answer = SeePlan(), AnswerPlan()
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# tiles: a tiny SmolVLM whose questions need the tiles

{parameters / 1e6:.1f} million parameters, float16, in the layout of SmolVLM-256M-Instruct, written by transformers'
`save_pretrained`: a SigLIP tower (tiles of 72 pixels, patch 8, width 128, 4 layers), pixel shuffle by 3 and a linear
layer (9 visual tokens a view), a Llama decoder (width 256, inner width 512, 4 layers, 4 heads, 2 of keys), SmolLM2's
vocabulary cut to what the task needs. A picture becomes 3 × 3 tiles and a global view. It exists to test exports: it
knows nothing but pictures of 448 to 576 pixels with one to nine of {len(NAMES)} objects, and three kinds of questions.

## Held-out scores

Exact match of greedy answers about {scenes} scenes (seeds from {SEEDS["heldout"].start:,}, generator version {VERSION})
that training never saw. "unseen": the question hangs on an object in a region where training never shows it.
5 views: `size.longest_edge` 144. 1 view: `do_image_splitting` false. A part of the training had 5 views or one.

{table(found)}

## Training

`python -m recipes.tiles.train`, on CPU in float32, from random weights: {see.steps} steps of {see.batch} views for
tower and connector, {answer.steps} steps of {answer.batch} pictures with up to nine questions each for the decoder.

## Data and licence

Scenes are made by `recipes/tiles/scenes.py`. The objects are glyphs of Noto Color Emoji (SIL Open Font License 1.1, see
`vlmexport/demo/SPRITES-LICENSE`). The vocabulary is that of SmolLM2 (Apache-2.0). The weights are under Apache-2.0
like the project.
"""
