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
from looking import look_loss
from muon import Muon
from packing import Packed, answer_logits, exact, pack
from prompts import VOCABULARY, Prompts
from torch import Tensor, nn

from vlmexport.demo.questions import Question, ask
from vlmexport.demo.scenes import BACKGROUNDS, TRAINING, make_scene
from vlmexport.demo.sprites import sprite_names

LOUDNESS = 0.6  # root mean square of visual tokens, as of word embeddings: later blocks can still change them
PLACES = ("left", "right", "top", "bottom")
PLACE_REACH = 4.0  # of 8, the norm of a word embedding: a cell at the edge resembles the word for that edge
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

    scenes: int = 4000  # per round
    shard: int = 250  # scenes that are rendered at a time
    validation: int = 160
    align_steps: int = 200
    align_batch: int = 32
    align_rate: float = 2e-3
    rounds: tuple[int, ...] = (1000, 500, 500)  # steps; every round has scenes of its own and a falling rate
    first_steps: int = 60
    batch: int = 12
    rates: tuple[float, ...] = (1.5e-3, 0.9e-3, 0.7e-3)
    warmup: int = 30
    align_weight: tuple[float, float] = (0.5, 0.05)
    look_weight: float = 0.1
    count_weight: float = 3.0  # one question a picture, and the one that takes longest to learn
    lessons_from: int = 200  # the step from which on every lesson of looking.py is taught
    check_every: int = 100
    seed: int = 2

    @property
    def steps(self) -> int:
        return sum(self.rounds)

    def place(self, step: int) -> tuple[int, int]:
        """Round, and step within it."""
        at = 0
        while step >= self.rounds[at]:
            step -= self.rounds[at]
            at += 1
        return at, step


class Model(nn.Module):
    """Projector and language model, and the heads of the alignment (dropped after training)."""

    def __init__(self) -> None:
        super().__init__()
        self.projector = Projector()
        self.language = Language(VOCABULARY)
        self.row = nn.Linear(WIDTH, CELLS)
        self.col = nn.Linear(WIDTH, CELLS)


def name_ids(prompts: Prompts) -> Tensor:
    """[CLASSES + 4]: the token of every class, sprites then backgrounds, and of the words for places."""
    return torch.tensor([prompts.name_id(name) for name in (*sprite_names(), *BACKGROUNDS, *PLACES)])


def alignment(model: Model, visual: Tensor, cells: Tensor, names: Tensor) -> tuple[Tensor, float]:
    """Visual tokens resemble the word for what their cell shows, and the words for where it lies.

    Cross-entropy of cosine(visual token, word embedding) over the class names; along the directions left → right and
    top → bottom of the word embeddings, the squared distance from the cell's place; norm, row and column.
    """
    flat = visual.flatten(0, 1)
    truth = cells.flatten()
    weight = torch.ones(CLASSES)
    weight[len(sprite_names()) :] = 0.2  # most cells show background
    words = nn.functional.normalize(model.language.embed_tokens.weight[names[:CLASSES]], dim=1)
    scores = SHARPNESS * nn.functional.normalize(flat, dim=1) @ words.T
    loss = nn.functional.cross_entropy(scores, truth, weight, ignore_index=IGNORE)
    line = torch.arange(CELLS)
    rows = line.repeat_interleave(CELLS).repeat(len(visual))
    cols = line.repeat(CELLS).repeat(len(visual))
    loss = loss + (flat.square().mean(1).sqrt() - LOUDNESS).square().mean()
    left, right, top, bottom = model.language.embed_tokens.weight[names[CLASSES:]].detach()
    for low, high, place in ((left, right, cols), (top, bottom, rows)):
        wanted = PLACE_REACH * (place - (CELLS - 1) / 2) / (CELLS / 2)
        loss = loss + 0.1 * nn.functional.mse_loss(flat @ nn.functional.normalize(high - low, dim=0), wanted)
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
        indices = np.sort(rng.choice(plan.scenes, plan.align_batch, replace=False))
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
    asked = ask(make_scene(seed, TRAINING), turn=turn, exists=4, described=4)
    return [q for q in asked if q.kind in FIRST_KINDS] if first else asked


def answer_loss(logits: Tensor, packed: Packed, count_weight: float) -> Tensor:
    """Cross-entropy over the answers' tokens, those of "how many" weighing more."""
    weights = torch.tensor([count_weight if question.kind == "count" else 1.0 for question in packed.questions])
    weights = weights[packed.owners]
    return nn.functional.cross_entropy(logits, packed.targets, reduction="none") @ weights / weights.sum()


def rate_at(step: int, plan: Plan) -> float:
    """Warm-up and cosine, once per round."""
    at, step = plan.place(step)
    fall = 0.5 + 0.5 * math.cos(math.pi * step / plan.rounds[at])
    return plan.rates[at] * min(1.0, (step + 1) / plan.warmup) * (0.01 + 0.99 * fall)


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
        """Turn of questions, and the pictures of this step: every epoch has an order of its own."""
        plan, count = self.plan, self.plan.scenes
        number, step = plan.place(self.step)
        epoch, at = divmod(step * plan.batch, count - count % plan.batch)
        order = np.random.default_rng([plan.seed, 2, epoch]).permutation(count)
        return 1 + epoch, number * count + np.sort(order[at : at + plan.batch])

    def advance(self) -> str:
        """One step; returns what to log."""
        plan, model = self.plan, self.model
        set_rate(self.made, rate_at(self.step, plan))
        turn, indices = self.pictures()
        features, cells = self.training.batch(indices)
        first = self.step < plan.first_steps
        seeds = [self.training.first_seed + int(i) for i in indices]
        packed = pack([questions_of(seed, turn, first) for seed in seeds], self.prompts)
        visual = model.projector(features)
        inputs: list[Tensor] = []
        logits = answer_logits(model.language, visual, packed, inputs)
        loss = answer_loss(logits, packed, plan.count_weight)
        aligned, right = alignment(model, visual, cells, self.names)
        share = min(1.0, self.step / plan.rounds[0])
        weight = plan.align_weight[0] * (1 - share) + plan.align_weight[1] * share
        names, every = self.names[: len(sprite_names())], self.step >= plan.lessons_from
        look = look_loss(model.language.layers, inputs, packed, cells, names, every)
        (loss + weight * aligned + plan.look_weight * look).backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for optimizer in self.made:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        good = sum(exact(logits.detach(), packed)) / len(packed.questions)
        return f"loss {loss.item():.3f} exact {good:.3f} cells {right:.3f} look {look.item():.2f} norm {norm:.2f}"

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
