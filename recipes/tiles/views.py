"""Pictures as the processor cuts them, rendered once and kept as bytes, and what each visual token should see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recipes.tiles.model import CELLS, GRID, PATCH, TILE, processor
from recipes.tiles.scenes import NAMES, SEEDS, Scene, make_scene, paint

NOTHING = len(NAMES)  # the label of a token that no object's centre falls into
UNCLEAR = -100  # the label of a patch that is left out
PATCHES = TILE // PATCH  # per side of a view
GRIDS = (GRID, 2)  # tiles per side; the global view of the first is the picture without tiles


@dataclass(frozen=True)
class Views:
    """Scenes of consecutive seeds as bytes [n, views, 3, TILE, TILE], labels of tokens [n, views, SEEN] and of
    patches [n, views, patches]."""

    first_seed: int
    grid: int
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patches: NDArray[np.int64]


def cell_labels(scene: Scene, grid: int) -> NDArray[np.int64]:
    """The class whose centre lies in a token's cell, or NOTHING; [grid² + 1, SEEN]. Of two, the larger."""
    found = []
    for side in (grid * CELLS, CELLS):
        cells = np.full((side, side), NOTHING, np.int64)
        for placed in sorted(scene.objects, key=lambda placed: placed.size):
            cells[int(placed.y * side), int(placed.x * side)] = NAMES.index(placed.name)
        found.append(_by_view(cells, CELLS))
    return np.concatenate(found)


def patch_labels(scene: Scene, grid: int) -> NDArray[np.int64]:
    """The class that lies on a patch, NOTHING, or UNCLEAR at an object's edge; [grid² + 1, patches]."""
    found, longer = [], max(scene.width, scene.height)
    for side in (grid * PATCHES, PATCHES):
        labels = np.full((side, side), NOTHING, np.int64)
        centres = (np.arange(side) + 0.5) / side
        for placed in sorted(scene.objects, key=lambda placed: placed.size):
            across = np.abs(centres - placed.x) * scene.width / longer / placed.size
            down = np.abs(centres - placed.y) * scene.height / longer / placed.size
            far = np.maximum(across[None, :], down[:, None])
            labels[(far < 0.6) & (labels == NOTHING)] = UNCLEAR
            labels[far < 0.4] = NAMES.index(placed.name)
        found.append(_by_view(labels, PATCHES))
    return np.concatenate(found)


def _by_view(cells: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """A picture's cells [tiles·side, tiles·side] → [tiles², side²]."""
    tiles = len(cells) // side
    return cells.reshape(tiles, side, tiles, side).transpose(0, 2, 1, 3).reshape(tiles * tiles, side * side)


def cut(scene: Scene, images: Any) -> NDArray[np.uint8]:
    """The views of a scene by an image processor, before they are scaled: [views, 3, TILE, TILE]."""
    made = images([[paint(scene)]], do_rescale=False, do_normalize=False, return_tensors="np")
    return np.asarray(made["pixel_values"][0]).round().astype(np.uint8)


def render(folder: Path, kind: str, grid: int, count: int, log: Callable[[str], None]) -> Views:
    """``count`` scenes of a range of seeds, from the folder or made now; it goes on where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    views, first, images = grid * grid + 1, SEEDS[kind].start, processor(grid).image_processor
    path, done = folder / f"{kind}-{grid}.npy", folder / f"{kind}-{grid}.done"
    shape = (count, views, 3, TILE, TILE)
    if path.exists() and np.load(path, mmap_mode="r").shape != shape:
        path.unlink()
        done.unlink(missing_ok=True)
    kept = np.lib.format.open_memmap(path, "r+" if path.exists() else "w+", np.uint8, shape)
    start = int(done.read_text()) if done.exists() else 0
    for at in range(start, count):
        kept[at] = cut(make_scene(first + at), images)
        if at % 200 == 199 or at == count - 1:
            kept.flush()
            done.write_text(str(at + 1))
            if at % 1000 == 999:
                log(f"rendered {at + 1} of {count} scenes ({kind}, {grid}×{grid} tiles)")
    scenes = [make_scene(first + at) for at in range(count)]
    labels, patches = (np.stack([of(scene, grid) for scene in scenes]) for of in (cell_labels, patch_labels))
    return Views(first, grid, np.load(path, mmap_mode="r"), labels, patches)


def normalized(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Bytes → values between −1 and 1, as the processor scales them."""
    return torch.from_numpy(np.array(pixels)).float().div_(127.5).sub_(1.0)
