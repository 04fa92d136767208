"""The demo model's card: what it is, how it was trained, and its held-out scores."""

from __future__ import annotations

import json
from pathlib import Path

import stage_answer
import stage_tower
from evaluate import evaluate
from safetensors import safe_open

from vlmexport.demo.scenes import BACKGROUNDS, HELDOUT_SEEDS, TOWER_SEEDS, TRAIN_SEEDS, VERSION
from vlmexport.demo.sprites import sprite_names

TYPES = ("q4_k_m", "q3_k_m", "q2_k")


def parameters(folder: Path) -> int:
    """How many numbers the checkpoint holds."""
    total = 0
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:  # type: ignore[no-untyped-call]
        for name in tensors.keys():  # noqa: SIM118  (not a dict)
            size = 1
            for length in tensors.get_slice(name).get_shape():
                size *= length
            total += size
    return total


def score_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per kind, a column per precision."""
    lines = ["| kind | questions | " + " | ".join(found) + " |", "|---|---:|" + "---:|" * len(found)]
    kinds = [kind for kind in found["float"] if kind != "all"]
    for kind in [*kinds, "all"]:
        cells = " | ".join(f"{of[kind]['exact']:.3f}" for of in found.values())
        lines.append(f"| {kind} | {found['float'][kind]['questions']:.0f} | {cells} |")
    return "\n".join(lines)


def training_text() -> str:
    """The three steps with the figures of their plans."""
    tower, answer = stage_tower.Plan(), stage_answer.Plan()
    side = tower.window
    return f"""1. tower: {tower.window_steps} steps of {tower.window_batch} windows ({side}×{side} patches around an
   object), then {tower.whole_steps} steps of {tower.whole_batch} whole pictures; class, row and column of
   every patch; {tower.scenes:,} scenes, seeds from {TOWER_SEEDS.start:,}; random seed {tower.seed};
2. alignment: {answer.align_steps} steps of {answer.align_batch} pictures, projector and word embeddings; the tower
   stays frozen from here on;
3. answers: {answer.steps} steps of {answer.batch} pictures with about 10 questions each, in {len(answer.rounds)} rounds
   of {answer.scenes:,} scenes each, seeds from {TRAIN_SEEDS.start:,}, the first
   {answer.first_steps} steps captions and short answers only; loss on answers, the alignment with falling weight, and a
   few heads that are told where to look (`recipes/demo/looking.py`); random seed {answer.seed}."""


def card_text(folder: Path, found: dict[str, dict[str, dict[str, float]]], scenes: int) -> str:
    """README.md of the checkpoint."""
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# demo: a tiny MobileVLM V2 that answers questions about emoji scenes

{parameters(folder) / 1e6:.1f} million parameters, float16, in the published MobileVLM V2 layout: a CLIP tower
(336 pixels, patch 14, width 192, 6 layers, features of layer −2), the LDPv2 projector (144 visual tokens), a Llama
decoder (width 256, inner width 768, 4 layers, 4 heads) and a SentencePiece tokenizer of 1,536 pieces. It exists to
test exports: it knows nothing but scenes of one to four of {len(sprite_names())} objects on one of
{len(BACKGROUNDS)} background colours.

## Held-out scores

Exact match of greedy answers on every question about {scenes} scenes (seeds from {HELDOUT_SEEDS.start:,}, generator
version {VERSION}) that training never saw. "float" is the float16 weights computed in float32; in the other columns
libggml's kernels quantized the decoder, without an importance matrix.

{score_table(found)}

## Training

`python recipes/demo/train.py`, on two CPU cores in float32, from random weights:

{training_text()}

Muon for the blocks' matrices, AdamW for the rest.

After training the decoder's norms were given the outlier channels of SmolLM2-135M, and the weights that read them were
divided by as much (`recipes/demo/outliers.py`): the function is the same, but as in real Llamas few bits lose it.

## Data and licence

Scenes are made by `vlmexport.demo.scenes`. The objects are glyphs of Noto Color Emoji (SIL Open Font License 1.1,
see `vlmexport/demo/SPRITES-LICENSE`). The weights are under Apache-2.0 like the project.
"""


def write_card(folder: Path, scenes: int) -> None:
    """Evaluate and write README.md and scores.json into the checkpoint's folder."""
    found = evaluate(folder, scenes, TYPES)
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_text(folder, found, scenes), encoding="utf-8")
