"""Exact match of a saved checkpoint on held-out scenes, in all tiles, in 2 × 2 tiles and without tiles.

    python -m recipes.tiles.evaluate FOLDER [--scenes 300]

The checkpoint is opened as anybody opens one, by AutoProcessor and AutoModelForImageTextToText, and computed in
float32. An answer is right when every greedy token up to its end is the expected one; that is what greedy decoding
gives, found in one pass. "unseen" counts the questions about an object in the region where training never shows it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.tiles.model import GRID, SEEN, TILE
from recipes.tiles.packing import exact, pack, run
from recipes.tiles.scenes import SEEDS, ask, make_scene, paint
from recipes.tiles.see import visual_tokens

SCENES = 300
MODES: dict[str, tuple[int, dict[str, Any]]] = {
    "10 views": (GRID, {}),
    "5 views": (2, {"size": {"longest_edge": 2 * TILE}}),
    "1 view": (0, {"do_image_splitting": False}),
}
"""Tiles per side, and what the processor is told."""


@torch.no_grad()
def scores(folder: Path, mode: str, count: int, batch: int = 10) -> dict[str, dict[str, float]]:
    """Per kind, over the unseen and over all: questions asked and exact match."""
    grid, told = MODES[mode]
    images = AutoProcessor.from_pretrained(folder).image_processor
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    seeds = SEEDS["heldout"][:count]
    for at in range(0, count, batch):
        some = [make_scene(seed) for seed in seeds[at : at + batch]]
        pixels = images([[paint(scene)] for scene in some], return_tensors="pt", **told)["pixel_values"]
        tokens = visual_tokens(model, pixels.flatten(0, 1)).view(*pixels.shape[:2], SEEN, -1).flatten(1, 2)
        packed = pack([ask(scene) for scene in some], grid)
        for question, good in zip(packed.questions, exact(run(model, tokens, packed)[0], packed), strict=True):
            for kind in (question.kind, "all", *(["unseen"] if question.unseen else [])):
                total[kind] += 1
                right[kind] += good
    return {kind: {"questions": total[kind], "exact": round(right[kind] / total[kind], 4)} for kind in sorted(total)}


def evaluate(folder: Path, count: int = SCENES) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by mode, then kind."""
    return {mode: scores(folder, mode, count) for mode in MODES}


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row per kind, a column per mode."""
    lines = ["| kind | questions | " + " | ".join(found) + " |", "|---|---:|" + "---:|" * len(found)]
    first = next(iter(found.values()))
    for kind in [*(kind for kind in first if kind not in ("all", "unseen")), "unseen", "all"]:
        if kind in first:
            cells = " | ".join(f"{of[kind]['exact']:.3f}" for of in found.values())
            lines.append(f"| {kind} | {first[kind]['questions']:.0f} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table, and write the scores as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = evaluate(arguments.folder, arguments.scenes)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
