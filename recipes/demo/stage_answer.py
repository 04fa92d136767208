"""The language stages: align the projector with the words, then learn to answer.

`align` trains projector and word embeddings alone: the visual token of a cell must resemble the embedding of the
name of what lies on it. `answer` is MobileVLM's two stages, captions and short answers first, then every kind of
question; projector and language model learn, the tower stays as it is.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import CLASSES, IGNORE
from features import Features, load_features
from language import CELLS, WIDTH, Language, Projector
from muon import Muon
from packing import answer_logits, exact, pack
from prompts import VOCABULARY, Prompts
from torch import Tensor, nn

from vlmexport.demo.questions import Question, ask
from vlmexport.demo.scenes import BACKGROUNDS, TRAINING, make_scene
from vlmexport.demo.sprites import sprite_names

SHARPNESS = 14.0  # of the alignment: cosine → logit
FIRST_KINDS = (
    "what",
    "describe",
    "background",
    "count",
    "exists",
)  # MobileVLM's first stage: captions, short answers


@dataclass(frozen=True)
class Plan:
    """Counts are steps and pictures per step."""

    scenes: int = 4000
    validation: int = 160
    align_steps: int = 300
    align_batch: int = 32
    align_rate: float = 2e-3
    steps: int = 750
    first_steps: int = 60
    batch: int = 12
    rate: float = 1.5e-3
    warmup: int = 30
    align_weight: tuple[float, float] = (0.5, 0.05)
    check_every: int = 100
    seed: int = 2


class Model(nn.Module):
    """Projector and language model, and the heads of the alignment (dropped after training)."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = Projector()
        self.language = Language(VOCABULARY)
        self.row = nn.Linear(WIDTH, CELLS)
        self.col = nn.Linear(WIDTH, CELLS)


def name_ids(prompts: Prompts) -> Tensor:
    """[CLASSES]: the token of every class, sprites then backgrounds."""
    return torch.tensor([prompts.name_id(name) for name in (*sprite_names(), *BACKGROUNDS)])


def alignment(model: Model, visual: Tensor, cells: Tensor, names: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of cosine(visual token, word embedding) over the names, plus row and column of the cell."""
    flat = visual.flatten(0, 1)
    truth = cells.flatten()
    weight = torch.ones(CLASSES)
    weight[len(sprite_names()) :] = 0.2  # most cells show background
    words = nn.functional.normalize(model.language.embed_tokens.weight[names], dim=1)
    scores = SHARPNESS * nn.functional.normalize(flat, dim=1) @ words.T
    loss = nn.functional.cross_entropy(scores, truth, weight, ignore_index=IGNORE)
    place = torch.arange(CELLS)
    rows = place.repeat_interleave(CELLS).repeat(len(visual))
    cols = place.repeat(CELLS).repeat(len(visual))
    loss = loss + 0.1 * nn.functional.cross_entropy(model.row(flat), rows)
    loss = loss + 0.1 * nn.functional.cross_entropy(model.col(flat), cols)
    shown = (truth >= 0) & (truth < len(sprite_names()))
    return loss, float((scores.detach()[shown].argmax(1) == truth[shown]).float().mean())


def optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon for the decoder's matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if n.startswith("language.layers") and p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01, foreach=True), Muon(matrices)]


def set_rate(made: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = rate


def align(work: Path, plan: Plan, log: Callable[[str], None]) -> None:
    """Write work/align.pt."""
    torch.manual_seed(plan.seed)
    model, prompts = Model(), Prompts(work / "tokenizer.model")
    training, _ = load_features(work)
    names, rng, start = name_ids(prompts), np.random.default_rng([plan.seed, 1]), time.time()
    learned = [*model.projector.parameters(), *model.row.parameters(), *model.col.parameters()]
    optimizer = torch.optim.AdamW([*learned, model.language.embed_tokens.weight], betas=(0.9, 0.98), foreach=True)
    for step in range(plan.align_steps):
        fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.align_steps)
        set_rate([optimizer], plan.align_rate * min(1.0, (step + 1) / 20) * (0.1 + 0.9 * fall))
        indices = np.sort(rng.choice(len(training.cells), plan.align_batch, replace=False))
        features, cells = training.batch(indices)
        loss, right = alignment(model, model.projector(features), cells, names)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            state = f"loss {loss.item():.3f} cells {right:.3f} {time.time() - start:.0f}s"
            log(f"align {step + 1}/{plan.align_steps} {state}")
    with torch.no_grad():  # what resembles a word shall be called by that word
        model.language.lm_head.weight.copy_(0.1 * model.language.embed_tokens.weight)
    torch.save(model.state_dict(), work / "align.pt")


def questions_of(seed: int, turn: int, first: bool) -> list[Question]:
    """What is asked about one training picture this time."""
    asked = ask(make_scene(seed, TRAINING), turn=turn)
    return [q for q in asked if q.kind in FIRST_KINDS] if first else asked


def rate_at(step: int, plan: Plan) -> float:
    fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.steps)
    return plan.rate * min(1.0, (step + 1) / plan.warmup) * (0.01 + 0.99 * fall)


@torch.no_grad()
def check(model: Model, unseen: Features, prompts: Prompts, batch: int) -> dict[str, float]:
    """Exact match per kind on the validation pictures."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for at in range(0, len(unseen.cells), batch):
        indices = np.arange(at, min(at + batch, len(unseen.cells)))
        features, _ = unseen.batch(indices)
        packed = pack([ask(make_scene(unseen.first_seed + int(i))) for i in indices], prompts)
        logits = answer_logits(model.language, model.projector(features), packed)
        for question, good in zip(packed.questions, exact(logits, packed), strict=True):
            total[question.kind] += 1
            right[question.kind] += good
    scores = {kind: right[kind] / total[kind] for kind in sorted(total)}
    return scores | {"all": sum(right.values()) / sum(total.values())}


class Trainer:
    """Model, optimizers, data and the step that has been reached; resumes from work/answer.pt."""

    def __init__(self, work: Path, plan: Plan) -> None:
        self.plan, self.checkpoint, self.step = plan, work / "answer.pt", 0
        self.model, self.prompts = Model(), Prompts(work / "tokenizer.model")
        self.model.load_state_dict(torch.load(work / "align.pt"))
        self.made = optimizers(self.model)
        self.training, self.unseen = load_features(work)
        self.names = name_ids(self.prompts)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint)
            self.step = state["step"]
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.made, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)

    def pictures(self) -> tuple[int, np.ndarray]:
        """Epoch, and the pictures of this step: every epoch has an order of its own."""
        plan, count = self.plan, len(self.training.cells)
        epoch, at = divmod(self.step * plan.batch, count - count % plan.batch)
        order = np.random.default_rng([plan.seed, 2, epoch]).permutation(count)
        return epoch, np.sort(order[at : at + plan.batch])

    def advance(self) -> str:
        """One step; returns what to log."""
        plan, model = self.plan, self.model
        set_rate(self.made, rate_at(self.step, plan))
        epoch, indices = self.pictures()
        features, cells = self.training.batch(indices)
        first = self.step < plan.first_steps
        seeds = [self.training.first_seed + int(i) for i in indices]
        packed = pack([questions_of(seed, 1 + epoch, first) for seed in seeds], self.prompts)
        visual = model.projector(features)
        logits = answer_logits(model.language, visual, packed)
        loss = nn.functional.cross_entropy(logits, packed.targets)
        aligned, right = alignment(model, visual, cells, self.names)
        share = self.step / plan.steps
        weight = plan.align_weight[0] * (1 - share) + plan.align_weight[1] * share
        (loss + weight * aligned).backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for optimizer in self.made:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        good = sum(exact(logits.detach(), packed)) / len(packed.questions)
        return f"loss {loss.item():.3f} exact {good:.3f} cells {right:.3f} norm {norm:.2f}"

    def save(self) -> None:
        """Write beside, then rename."""
        optimizers = [optimizer.state_dict() for optimizer in self.made]
        state = {"model": self.model.state_dict(), "step": self.step, "optimizers": optimizers}
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)


def answer(work: Path, plan: Plan, log: Callable[[str], None]) -> None:
    """Train to the end of the plan; a checkpoint and a look at unseen pictures now and then."""
    trainer, start = Trainer(work, plan), time.time()
    while trainer.step < plan.steps:
        state = trainer.advance()
        if trainer.step % 10 == 0:
            log(f"answer {trainer.step}/{plan.steps} {state} {time.time() - start:.0f}s")
        if trainer.step % plan.check_every == 0 or trainer.step == plan.steps:
            trainer.save()
            scores = check(trainer.model, trainer.unseen, trainer.prompts, plan.batch)
            log("unseen: " + ", ".join(f"{kind} {score:.3f}" for kind, score in scores.items()))
