"""Features of the frozen tower, computed once for all pictures of the language stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import GRID, IGNORE, normalized, render
from language import CELLS, VISION_WIDTH
from stage_tower import load_shard
from torch import Tensor
from tower import Tower

from vlmexport.demo.scenes import TRAIN_SEEDS, VALIDATION_SEEDS, Difficulty


@dataclass(frozen=True)
class Features:
    """features [n, 576, 192] float16 and cells [n, 144] (class per visual token or IGNORE) of consecutive seeds."""

    first_seed: int
    features: np.ndarray
    cells: np.ndarray

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """float32 features and int64 cells of these pictures."""
        features = torch.from_numpy(self.features[indices]).float()
        return features, torch.from_numpy(self.cells[indices].astype(np.int64))


def cell_labels(labels: np.ndarray) -> np.ndarray:
    """Patch labels [n, 24, 24] → [n, 144]: the class of a 2×2 block where at least two of its patches agree."""
    n = len(labels)
    blocks = labels.reshape(n, CELLS, 2, CELLS, 2).transpose(0, 1, 3, 2, 4).reshape(n, CELLS * CELLS, 4)
    cells = np.full(blocks.shape[:2], IGNORE, np.int16)
    for corner in range(4):
        candidate = blocks[:, :, corner]
        votes = (blocks == candidate[:, :, None]).sum(2)
        cells = np.where((votes >= 2) & (candidate != IGNORE), candidate, cells)
    return cells


@torch.no_grad()
def tower_features(tower: Tower, pictures: np.ndarray) -> np.ndarray:
    """[n, 336, 336, 3] uint8 → [n, 576, 192] float16."""
    parts = [tower.whole(normalized(pictures[at : at + 10])) for at in range(0, len(pictures), 10)]
    return torch.cat(parts).half().numpy()


def load_tower(work: Path) -> Tower:
    """The trained tower as it will be published: weights rounded to float16."""
    tower = Tower().eval()
    tower.load_state_dict({k: v.half().float() for k, v in torch.load(work / "tower.pt")["tower"].items()})
    return tower


def compute_features(work: Path, scenes: int, validation: int, shard: int, log: Callable[[str], None]) -> None:
    """Fill work/features.npy shard by shard; resumes after the last whole shard."""
    tower = load_tower(work)
    kind = "r+" if (work / "features.npy").exists() else "w+"
    shape = (scenes, GRID * GRID, VISION_WIDTH)
    kept = np.lib.format.open_memmap(work / "features.npy", kind, np.float16, shape)
    cells_path = work / "cells.npy"
    cells = np.load(cells_path) if cells_path.exists() else np.zeros((0, CELLS * CELLS), np.int16)
    for at in range(len(cells), scenes, shard):
        pictures, labels = load_shard(work / "train", TRAIN_SEEDS.start + at)
        kept[at : at + shard] = tower_features(tower, pictures)
        kept.flush()
        cells = np.concatenate([cells, cell_labels(labels)])
        np.save(cells_path, cells)
        log(f"features {len(cells)}/{scenes}")
    if not (work / "validation.npz").exists():
        pictures, labels = render(VALIDATION_SEEDS[:validation], Difficulty())
        np.savez(work / "validation.npz", features=tower_features(tower, pictures), cells=cell_labels(labels))


def load_features(work: Path) -> tuple[Features, Features]:
    """Those of training, and those of validation."""
    training = Features(TRAIN_SEEDS.start, np.load(work / "features.npy", mmap_mode="r"), np.load(work / "cells.npy"))
    with np.load(work / "validation.npz") as arrays:
        return training, Features(VALIDATION_SEEDS.start, arrays["features"], arrays["cells"])
