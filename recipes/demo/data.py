"""Scenes as arrays: pictures and what lies on each patch, rendered in processes of their own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlmexport.demo.paint import paint_with_alpha
from vlmexport.demo.scenes import BACKGROUNDS, SIDE, TRAINING, Difficulty, Scene, make_scene
from vlmexport.demo.sprites import sprite_names

GRID = 24
CLASSES = len(sprite_names()) + len(BACKGROUNDS)
IGNORE = -100
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def patch_labels(scene: Scene, alphas: list[Image.Image]) -> np.ndarray:
    """Class of each patch, [24, 24] int16: sprite id, background id after the sprites, or IGNORE on edges."""
    background = len(sprite_names()) + list(BACKGROUNDS).index(scene.background)
    covers = np.stack([np.asarray(a.resize((GRID, GRID), Image.Resampling.BOX), np.float32) / 255 for a in alphas])
    labels = np.full((GRID, GRID), IGNORE, np.int16)
    labels[covers.sum(0) < 0.04] = background
    best = covers.argmax(0)
    ids = np.array([placed.class_id for placed in scene.objects], np.int16)
    labels[covers.max(0) > 0.35] = ids[best][covers.max(0) > 0.35]
    return labels


def render(seeds: range, level: Difficulty) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, 336, 336, 3] uint8 and patch labels [n, 24, 24] int16."""
    pictures = np.empty((len(seeds), SIDE, SIDE, 3), np.uint8)
    labels = np.empty((len(seeds), GRID, GRID), np.int16)
    for index, seed in enumerate(seeds):
        scene = make_scene(seed, level)
        picture, alphas = paint_with_alpha(scene)
        pictures[index] = np.asarray(picture)
        labels[index] = patch_labels(scene, alphas)
    return pictures, labels


def shard_path(folder: Path, start: int) -> Path:
    return folder / f"scenes-{start}.npz"


def render_shards(folder: Path, seeds: range, size: int) -> None:
    """Write shards of `size` scenes; those that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(seeds.start, seeds.stop, size):
        path = shard_path(folder, start)
        if not path.exists():
            pictures, labels = render(range(start, min(start + size, seeds.stop)), TRAINING)
            partial = path.with_suffix(".tmp")
            with partial.open("wb") as file:
                np.savez(file, pictures=pictures, labels=labels)
            os.replace(partial, path)


def normalized(pictures: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] → CLIP's pixel values [n, 3, h, w]."""
    pixels = torch.from_numpy(pictures).float().div_(255)
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    return pixels.permute(0, 3, 1, 2).contiguous()


def main() -> None:
    """Render shards: the background process of the training program."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("start", type=int)
    parser.add_argument("stop", type=int)
    parser.add_argument("--size", type=int, default=250)
    arguments = parser.parse_args()
    render_shards(arguments.folder, range(arguments.start, arguments.stop), arguments.size)


if __name__ == "__main__":
    main()
