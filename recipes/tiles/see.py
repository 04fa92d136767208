"""First stage: vision tower and connector learn to say, token by token, what lies there.

A visual token of a cell that holds an object's centre shall resemble the embedding of the object's name; every other
one an embedding for nothing. A head that is dropped afterwards names what lies on every patch, which teaches the tower
much sooner than the few tokens do. Tower, connector and the names' embeddings learn; the decoder is not run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recipes.demo.muon import Muon
from recipes.tiles.model import CELLS, LOUDNESS, TEXT, VISION, new_model, word_ids
from recipes.tiles.scenes import NAMES
from recipes.tiles.views import NOTHING, UNCLEAR, Views, normalized

SHARPNESS = 14.0  # cosine → logit


@dataclass(frozen=True)
class Plan:
    """Counts are steps and views per step; ``shares``: of tiles of 3 × 3, tiles of 2 × 2, global views."""

    steps: int = 900
    batch: int = 64
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    rate: float = 1.5e-3
    warmup: int = 40
    check_every: int = 50
    seed: int = 1


class Heads(nn.Module):
    """What only training needs: the embedding for nothing, where in its view a token lies, what lies on a patch."""

    def __init__(self) -> None:
        super().__init__()
        width = TEXT["hidden_size"]
        self.nothing = nn.Parameter(torch.randn(width) * LOUDNESS)
        self.row, self.column = nn.Linear(width, CELLS), nn.Linear(width, CELLS)
        self.patch = nn.Linear(VISION["hidden_size"], len(NAMES) + 1)


def features(model: Any, pixels: Tensor) -> Tensor:
    """[views, 3, TILE, TILE] → [views, patches, width], by the model's own tower."""
    side = pixels.shape[-1] // model.config.vision_config.patch_size
    whole = torch.ones(len(pixels), side, side, dtype=torch.bool)
    return cast(Tensor, model.model.vision_model(pixels, patch_attention_mask=whole).last_hidden_state)


def visual_tokens(model: Any, pixels: Tensor) -> Tensor:
    """[views, 3, TILE, TILE] → [views, SEEN, hidden], by the model's own tower and connector."""
    return cast(Tensor, model.model.connector(features(model, pixels)))


def seen(model: Any, heads: Heads, tokens: Tensor) -> Tensor:
    """Scores of every name and of nothing, [tokens, NAMES + 1]."""
    words = torch.cat([model.model.text_model.embed_tokens.weight[word_ids(NAMES)], heads.nothing[None]])
    return SHARPNESS * nn.functional.normalize(tokens, dim=-1) @ nn.functional.normalize(words, dim=-1).T


@dataclass(frozen=True)
class Batch:
    """pixels [views, 3, TILE, TILE], labels [views, SEEN] of tokens and [views, patches] of patches."""

    pixels: Tensor
    labels: Tensor
    patches: Tensor


def dense_loss(model: Any, heads: Heads, batch: Batch) -> tuple[Tensor, float]:
    """Cross-entropy of what is seen, loudness, places; and the share of objects that are named right."""
    found = features(model, batch.pixels)
    tokens = model.model.connector(found).flatten(0, 1)
    truth, count = batch.labels.flatten(), len(batch.pixels)
    scores = seen(model, heads, tokens)
    weight = torch.cat([torch.ones(len(NAMES)), torch.tensor([0.25])])
    loss = nn.functional.cross_entropy(scores, truth, weight)
    on_patch = heads.patch(found).flatten(0, 1)
    loss = loss + nn.functional.cross_entropy(on_patch, batch.patches.flatten(), weight, ignore_index=UNCLEAR)
    loss = loss + (tokens.square().mean(1).sqrt() - LOUDNESS).square().mean()
    line = torch.arange(CELLS)
    rows, columns = line.repeat_interleave(CELLS).repeat(count), line.repeat(CELLS * count)
    loss = loss + 0.1 * nn.functional.cross_entropy(heads.row(tokens), rows)
    loss = loss + 0.1 * nn.functional.cross_entropy(heads.column(tokens), columns)
    shown = truth != NOTHING
    return loss, float((scores.detach()[shown].argmax(1) == truth[shown]).float().mean())


def pick(three: Views, two: Views, plan: Plan, step: int) -> Batch:
    """Views of this step, those with objects mostly. It depends on the step alone."""
    rng = np.random.default_rng([plan.seed, step])
    counts = rng.multinomial(plan.batch, plan.shares)
    taken: list[tuple[Views, int, int]] = []
    for views, allowed, count in ((three, range(9), counts[0]), (two, range(4), counts[1]), (three, [9], counts[2])):
        full = len(taken) + count
        while len(taken) < full:
            scene, view = int(rng.integers(len(views.labels))), int(rng.choice(allowed))
            if (views.labels[scene, view] != NOTHING).any() or rng.random() < 0.05:
                taken.append((views, scene, view))
    return Batch(
        normalized(np.stack([views.pixels[scene, view] for views, scene, view in taken])),
        torch.from_numpy(np.stack([views.labels[scene, view] for views, scene, view in taken])),
        torch.from_numpy(np.stack([views.patches[scene, view] for views, scene, view in taken])),
    )


def rate_at(step: int, plan: Plan) -> float:
    """Warm-up, then a cosine to a hundredth."""
    fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)
    return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.01 + 0.99 * fall)


@torch.no_grad()
def accuracy(model: Any, heads: Heads, views: Views, which: list[int]) -> float:
    """Objects named right by the token at their centre, in these views of unseen scenes."""
    right = total = 0
    for at in range(0, len(views.labels), 20):
        labels = torch.from_numpy(views.labels[at : at + 20, which]).flatten()
        pixels = normalized(views.pixels[at : at + 20, which]).flatten(0, 1)
        guess = seen(model, heads, visual_tokens(model, pixels).flatten(0, 1)).argmax(1)
        shown = labels != NOTHING
        right, total = right + int((guess == labels)[shown].sum()), total + int(shown.sum())
    return right / total


class Trainer:
    """Model, heads, optimizers and the step that has been reached; resumes from work/see.pt."""

    def __init__(self, work: Path, plan: Plan) -> None:
        self.plan, self.checkpoint, self.step = plan, work / "see.pt", 0
        self.model = new_model(plan.seed)
        self.heads = Heads()
        sight = [self.model.model.vision_model, self.model.model.connector]
        blocks = self.model.model.vision_model.encoder
        matrices = [p for p in blocks.parameters() if p.ndim == 2]
        taken = {id(p) for p in matrices}
        rest = [p for part in sight for p in part.parameters() if id(p) not in taken]
        rest += [*self.heads.parameters(), self.model.model.text_model.embed_tokens.weight]
        self.learned = [*matrices, *rest]
        self.made = [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, foreach=True), Muon(matrices)]
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            for optimizer, saved in zip(self.made, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def advance(self, batch: Batch) -> str:
        """One step; returns what to log."""
        for optimizer in self.made:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(self.step, self.plan)
        loss, right = dense_loss(self.model, self.heads, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.learned, 1.0)
        for optimizer in self.made:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return f"loss {loss.item():.3f} objects {right:.3f} norm {norm:.2f}"

    def save(self) -> None:
        """Write beside, then rename."""
        state = {"model": self.model.state_dict(), "heads": self.heads.state_dict(), "step": self.step}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.made]
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)


def see(work: Path, plan: Plan, three: Views, two: Views, unseen: Views, log: Callable[[str], None]) -> None:
    """Train to the end of the plan; a checkpoint and a look at unseen scenes now and then."""
    trainer, start = Trainer(work, plan), time.process_time()
    while trainer.step < plan.steps:
        state = trainer.advance(pick(three, two, plan, trainer.step))
        if trainer.step % 10 == 0:
            log(f"see {trainer.step}/{plan.steps} {state} {time.process_time() - start:.0f} CPU s")
        if trainer.step % plan.check_every == 0 or trainer.step == plan.steps:
            trainer.save()
            model, heads = trainer.model, trainer.heads
            tiles, whole = accuracy(model, heads, unseen, list(range(9))), accuracy(model, heads, unseen, [9])
            log(f"unseen objects: {tiles:.3f} in tiles, {whole:.3f} in global views")
