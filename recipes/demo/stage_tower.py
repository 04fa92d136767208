"""Stage A: the vision tower learns what is on every patch, on crops first, then on whole pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import CLASSES, GRID, IGNORE, normalized, render, shard_path
from muon import Muon
from torch import Tensor, nn
from tower import PATCH, Heads, Tower

from vlmexport.demo.scenes import TOWER_SEEDS, VALIDATION_SEEDS, Difficulty
from vlmexport.demo.sprites import sprite_names

SPRITES = len(sprite_names())


@dataclass(frozen=True)
class Plan:
    """Windows are squares of `window` patches around an object; counts are steps and pictures per step."""

    window: int = 10
    window_steps: int = 1000
    window_batch: int = 48
    whole_steps: int = 300
    whole_batch: int = 12
    scenes: int = 8000
    shard: int = 250  # scenes that are rendered at a time
    rate: float = 1.5e-3
    whole_rate: float = 5e-4
    warmup: int = 60
    unseen: int = 200
    seed: int = 1


@dataclass(frozen=True)
class Batch:
    """pictures [n, h·14, w·14, 3] uint8, labels [n, h, w], rows [n, h], cols [n, w]."""

    pictures: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    cols: np.ndarray


def load_shard(folder: Path, start: int) -> tuple[np.ndarray, np.ndarray]:
    """A shard, when the rendering process has written it."""
    path = shard_path(folder, start)
    while not path.exists():
        time.sleep(1.0)
    with np.load(path) as arrays:
        return arrays["pictures"], arrays["labels"]


def windows(pictures: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> Batch:
    """One window per object of these scenes, centred on it up to two patches."""
    found = []
    for index in range(len(pictures)):
        for class_id in np.unique(labels[index][(labels[index] >= 0) & (labels[index] < SPRITES)]):
            ys, xs = np.nonzero(labels[index] == class_id)
            corner = np.rint([ys.mean() - size / 2 + 0.5, xs.mean() - size / 2 + 0.5]) + rng.integers(-2, 3, 2)
            row, col = np.clip(corner, 0, GRID - size).astype(int)
            found.append((index, row, col))
    order = [found[i] for i in rng.permutation(len(found))]
    span = np.arange(size)
    side = size * PATCH
    return Batch(
        np.stack([pictures[i, r * PATCH :, c * PATCH :][:side, :side] for i, r, c in order]),
        np.stack([labels[i, r : r + size, c : c + size] for i, r, c in order]),
        np.stack([r + span for _, r, _ in order]),
        np.stack([c + span for _, _, c in order]),
    )


def batches(folder: Path, plan: Plan, whole: bool) -> Iterator[Batch]:
    """Endless; every epoch takes other windows."""
    rng = np.random.default_rng([plan.seed, int(whole)])
    size = plan.whole_batch if whole else plan.window_batch
    starts = np.arange(TOWER_SEEDS.start, TOWER_SEEDS.start + plan.scenes, plan.shard)
    epoch = 0
    while True:
        for start in starts if epoch == 0 else rng.permutation(starts):
            pictures, labels = load_shard(folder, int(start))
            if whole:
                span = np.tile(np.arange(GRID), (len(pictures), 1))
                every = Batch(pictures, labels, span, span)
            else:
                every = windows(pictures, labels, plan.window, rng)
            for at in range(0, len(every.labels) - size + 1, size):
                cut = slice(at, at + size)
                yield Batch(every.pictures[cut], every.labels[cut], every.rows[cut], every.cols[cut])
        epoch += 1


def dense_loss(tower: Tower, heads: Heads, batch: Batch, weight: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy per patch of class, row and column; and the accuracy on object patches."""
    pixels = normalized(batch.pictures)
    rows, cols = torch.from_numpy(batch.rows), torch.from_numpy(batch.cols)
    labels = torch.from_numpy(batch.labels.astype(np.int64)).flatten()
    what, row, col = heads(tower(pixels, rows, cols))
    h, w = batch.rows.shape[1], batch.cols.shape[1]
    loss = nn.functional.cross_entropy(what.flatten(0, 1), labels, weight, ignore_index=IGNORE)
    row_target = rows[:, :, None].expand(-1, h, w).flatten()
    col_target = cols[:, None, :].expand(-1, h, w).flatten()
    loss = loss + 0.1 * nn.functional.cross_entropy(row.flatten(0, 1), row_target)
    loss = loss + 0.1 * nn.functional.cross_entropy(col.flatten(0, 1), col_target)
    shown = (labels >= 0) & (labels < SPRITES)
    right = (what.detach().flatten(0, 1)[shown].argmax(1) == labels[shown]).float().mean()
    return loss, float(right)


def optimizers(tower: Tower, heads: Heads) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices , AdamW for the rest."""
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2 and n.startswith("layers")]
    taken = {id(p) for p in matrices}
    rest = [p for p in [*tower.parameters(), *heads.parameters()] if id(p) not in taken]
    return [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.02, foreach=True), Muon(matrices)]


def rate_at(step: int, plan: Plan) -> float:
    """Warm-up, then cosine to 0.4 of the rate over the windows; whole pictures go from whole_rate to zero."""
    if step < plan.window_steps:
        fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.window_steps)
        return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.35 + 0.65 * fall)
    return plan.whole_rate * max(0.01, 0.5 + 0.5 * math.cos(math.pi * (step - plan.window_steps) / plan.whole_steps))


@torch.no_grad()
def object_accuracy(tower: Tower, heads: Heads, count: int) -> tuple[float, float]:
    """On unseen whole pictures: objects named right by the mean of their patches, and backgrounds named right."""
    pictures, labels = render(VALIDATION_SEEDS[:count], Difficulty())
    right = total = plain = 0
    for at in range(0, count, 10):
        what = heads(tower.whole(normalized(pictures[at : at + 10])))[0].log_softmax(-1)
        for scores, truth in zip(what, labels[at : at + 10].reshape(-1, GRID * GRID), strict=True):
            for class_id in np.unique(truth[truth >= 0]):
                guess = int(scores[torch.from_numpy(truth == class_id)].mean(0).argmax())
                if class_id < SPRITES:
                    total += 1
                    right += guess == class_id
                else:
                    plain += guess == class_id
    return right / total, plain / count


class Trainer:
    """Tower, heads, optimizers and the step that has been reached; resumes from work/tower.pt."""

    def __init__(self, work: Path, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.checkpoint, self.step = plan, work / "tower.pt", 0
        self.tower, self.heads = Tower(), Heads(CLASSES)
        self.made = optimizers(self.tower, self.heads)
        self.weight = torch.cat([torch.ones(SPRITES), torch.full((CLASSES - SPRITES,), 0.15)])
        self.windows, self.whole = batches(work / "tower", plan, False), batches(work / "tower", plan, True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.step = state["step"]
            self.tower.load_state_dict(state["tower"])
            self.heads.load_state_dict(state["heads"])
            for optimizer, saved in zip(self.made, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def advance(self) -> str:
        """One step; returns what to log."""
        rate = rate_at(self.step, self.plan)
        for optimizer in self.made:
            for group in optimizer.param_groups:
                group["lr"] = rate
        batch = next(self.windows if self.step < self.plan.window_steps else self.whole)
        loss, right = dense_loss(self.tower, self.heads, batch, self.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_([*self.tower.parameters(), *self.heads.parameters()], 1.0)
        for optimizer in self.made:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return f"loss {loss.item():.3f} patches {right:.3f} norm {norm:.2f}"

    def save(self) -> None:
        """Write beside, then rename."""
        state = {"tower": self.tower.state_dict(), "heads": self.heads.state_dict(), "step": self.step}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.made]
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)


def train_tower(work: Path, plan: Plan, log: Callable[[str], None]) -> None:
    """Train to the end of the plan, then score on unseen scenes."""
    trainer, start, total = Trainer(work, plan), time.time(), plan.window_steps + plan.whole_steps
    while trainer.step < total:
        state = trainer.advance()
        if trainer.step % 10 == 0:
            log(f"tower {trainer.step}/{total} {state} {time.time() - start:.0f}s")
        if trainer.step % 100 == 0 or trainer.step == total:
            trainer.save()
    right, plain = object_accuracy(trainer.tower.eval(), trainer.heads, plan.unseen)
    log(f"tower: objects {right:.3f}, backgrounds {plain:.3f} on {plan.unseen} unseen scenes")
