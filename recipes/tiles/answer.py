"""Second stage: the decoder learns to answer; tower and connector stay as they are, and their tokens are computed once.

Most pictures are seen in 3 × 3 tiles, some in 2 × 2, some in one view without tiles: so the model knows what to do with
fewer views, and what it does not say without tiles it cannot see.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.demo.muon import Muon
from recipes.tiles.looking import look_loss
from recipes.tiles.model import SEEN, new_model, share_names
from recipes.tiles.packing import Packed, exact, pack, run
from recipes.tiles.scenes import ask, make_scene
from recipes.tiles.see import visual_tokens
from recipes.tiles.views import Views, normalized

MODES = ("tiles", "four", "one")  # 3 × 3 tiles, 2 × 2 tiles, one view


@dataclass(frozen=True)
class Plan:
    """Counts are steps and pictures per step; ``shares`` of MODES."""

    steps: int = 680
    batch: int = 12
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    rate: float = 1.5e-3
    warmup: int = 30
    look_weight: float = 0.15
    count_weight: float = 2.0
    check_every: int = 50
    seed: int = 2


@dataclass(frozen=True)
class Seen:
    """Visual tokens of consecutive seeds, float16 [n, views, SEEN, hidden], and labels [n, views, SEEN]."""

    first_seed: int
    grid: int
    tokens: NDArray[np.float16]
    labels: NDArray[np.int64]

    def one_view(self) -> Seen:
        """The same pictures without tiles: their global views alone."""
        return Seen(self.first_seed, 0, self.tokens[:, -1:], self.labels[:, -1:])


@torch.no_grad()
def look_at(model: Any, views: Views, path: Path, log: Callable[[str], None]) -> Seen:
    """Visual tokens of all scenes, from the file or computed now."""
    if not path.exists():
        parts = []
        for at in range(0, len(views.labels), 20):
            pixels = normalized(views.pixels[at : at + 20])
            parts.append(visual_tokens(model, pixels.flatten(0, 1)).view(*pixels.shape[:2], SEEN, -1).half().numpy())
            if at % 1000 == 0:
                log(f"visual tokens of {at} of {len(views.labels)} scenes")
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, np.concatenate(parts))
        path.with_suffix(".tmp").replace(path)
    return Seen(views.first_seed, views.grid, np.load(path), views.labels)


def rate_at(step: int, plan: Plan) -> float:
    """Warm-up, then a cosine to a hundredth."""
    fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)
    return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.01 + 0.99 * fall)


def answer_loss(logits: Tensor, packed: Packed, plan: Plan) -> Tensor:
    """Cross-entropy over the answers' tokens."""
    heavy = {"how many": plan.count_weight}
    weights = torch.tensor([heavy.get(question.kind, 1.0) for question in packed.questions])[packed.owners]
    return nn.functional.cross_entropy(logits, packed.targets, reduction="none") @ weights / weights.sum()


@torch.no_grad()
def check(model: Any, seen: Seen, batch: int = 20) -> dict[str, float]:
    """Exact match per kind and over all."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for at in range(0, len(seen.labels), batch):
        tokens = torch.from_numpy(seen.tokens[at : at + batch]).float().flatten(1, 2)
        packed = pack([ask(make_scene(seen.first_seed + at + i)) for i in range(len(tokens))], seen.grid)
        for question, good in zip(packed.questions, exact(run(model, tokens, packed)[0], packed), strict=True):
            for kind in (question.kind, "all"):
                total[kind] += 1
                right[kind] += good
    return {kind: right[kind] / total[kind] for kind in sorted(total)}


class Trainer:
    """Model, optimizers and the step that has been reached; resumes from work/answer.pt."""

    def __init__(self, work: Path, plan: Plan, model: Any) -> None:
        self.plan, self.checkpoint, self.step, self.model = plan, work / "answer.pt", 0, model
        model.model.vision_model.requires_grad_(False)
        model.model.connector.requires_grad_(False)
        text = model.model.text_model
        matrices = [p for p in text.layers.parameters() if p.ndim == 2]
        taken = {id(p) for p in matrices}
        rest = [p for p in [*text.parameters(), model.lm_head.weight] if id(p) not in taken]
        self.learned = [*matrices, *rest]
        self.made = [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, foreach=True), Muon(matrices)]
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.step = state["step"]
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.made, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def advance(self, pictures: dict[str, Seen]) -> str:
        """One step; returns what to log. Which pictures it takes depends on the step alone."""
        plan, rng = self.plan, np.random.default_rng([self.plan.seed, self.step])
        for optimizer in self.made:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(self.step, plan)
        mode = str(rng.choice(MODES, p=plan.shares))
        seen = pictures[mode]
        chosen = rng.choice(len(seen.labels), plan.batch, replace=False)
        turn = 1 + self.step * plan.batch // len(pictures["tiles"].labels)
        packed = pack([ask(make_scene(seen.first_seed + int(i)), turn) for i in chosen], seen.grid)
        tokens = torch.from_numpy(seen.tokens[chosen]).float().flatten(1, 2)
        logits, states = run(self.model, tokens, packed)
        loss = answer_loss(logits, packed, plan)
        look = look_loss(self.model, states, packed, torch.from_numpy(seen.labels[chosen]))
        (loss + plan.look_weight * look).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.learned, 1.0)
        for optimizer in self.made:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        good = exact(logits.detach(), packed)
        return f"{mode} loss {loss.item():.3f} exact {sum(good) / len(good):.3f} look {look.item():.2f} norm {norm:.2f}"

    def save(self) -> None:
        """Write beside, then rename."""
        state = {"model": self.model.state_dict(), "step": self.step}
        state["optimizers"] = [optimizer.state_dict() for optimizer in self.made]
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)


def answer(work: Path, plan: Plan, three: Views, two: Views, unseen: Views, log: Callable[[str], None]) -> None:
    """Train to the end of the plan; a checkpoint and a look at unseen scenes now and then."""
    model = new_model(plan.seed)
    model.load_state_dict(torch.load(work / "see.pt")["model"])
    share_names(model)
    names = (("tiles", three), ("four", two), ("unseen", unseen))
    pictures = {name: look_at(model, views, work / f"tokens-{name}.npy", log) for name, views in names}
    pictures["one"] = pictures["tiles"].one_view()
    trainer, start = Trainer(work, plan, model), time.process_time()
    while trainer.step < plan.steps:
        state = trainer.advance(pictures)
        if trainer.step % 10 == 0:
            log(f"answer {trainer.step}/{plan.steps} {state} {time.process_time() - start:.0f} CPU s")
        if trainer.step % plan.check_every == 0 or trainer.step == plan.steps:
            trainer.save()
            for name, seen in (("tiles", pictures["unseen"]), ("one view", pictures["unseen"].one_view())):
                scores = check(model, seen)
                log(f"unseen, {name}: " + ", ".join(f"{kind} {score:.3f}" for kind, score in scores.items()))
