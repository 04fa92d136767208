"""The run: model and data opened, steps, a state that is kept for the next run, and the checkpoint at the end."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import losses
import numpy as np
import output
import torch
from batches import Batch, answer_logits, pack
from lessons import Lesson, lessons
from pruning import Masks
from qat import FakeQuantization, tower
from settings import Settings
from structure import restructure
from teacher import Teacher
from torch import nn

from vlmexport.artifact.bundle.staging import refuse_destination
from vlmexport.console import Console
from vlmexport.errors import UsageError
from vlmexport.model import load
from vlmexport.model.random_weights import Observer, measure_statistics
from vlmexport.pipeline import open_whole

WARM_UP = 0.03
"""Part of the steps in which the rate rises; then it falls as a half cosine. Source: LLaVA's recipe."""

CLIP = 1.0
"""Largest norm of a gradient."""

LOG_EVERY = 20

_OBSERVED = 32
"""Pictures that a projector in static int8 takes its final ranges from."""


class Trainer:
    """Everything that a step needs; ``step`` counts those that are done.

    Raises:
        UsageError, CheckpointError, Unsupported: what is asked for cannot be.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.step = settings, 0
        self.checkpoint = open_whole(settings.model, settings.vision_tower)
        self.lessons = lessons(settings.data, settings.stage)
        self.vlm = restructure(load(self.checkpoint, resident=True), settings)
        self.masks = Masks(self.vlm, settings.prune)
        self.masks.apply(self.vlm)
        self.qat = FakeQuantization(settings.qat, self.checkpoint) if settings.qat else None
        self.features = tower(self.vlm, self.checkpoint, self.qat, settings.features, settings.data)
        self.teacher = Teacher(settings, self.checkpoint) if settings.teacher else None
        parts = zip((self.vlm.projector, self.vlm.language), settings.rates, strict=True)
        groups = [{"params": list(part.requires_grad_().parameters()), "peak": rate} for part, rate in parts if rate]
        for layer in self._observers():
            layer.train()  # ranges follow what is learned
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)

    @cached_property
    def facts(self) -> str:
        """What makes two runs one: settings, the model that is trained, the pictures and what is asked about them."""
        data = hashlib.sha256()
        for lesson in self.lessons:
            data.update(repr([lesson.name, lesson.content(), lesson.turns(0)]).encode())
        model = [self.checkpoint.fingerprints, self.checkpoint.spec, self.checkpoint.tokenizer.fingerprint]
        return repr([self.settings.facts(), model, data.hexdigest()])

    def advance(self) -> dict[str, float]:
        """One step; its losses by name."""
        settings = self.settings
        some, batch = self._batch()
        self._set_rates()
        found: dict[str, float] = {}
        with self.qat.applied(self.vlm) if self.qat else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.mixed == "bf16"):
                logits = answer_logits(self.vlm, self.features(some), batch)
            loss = losses.labels(logits, batch.targets)
            found["answers"] = loss.item()
            if self.teacher is not None:
                imitated = losses.distillation(logits, self.teacher.logits(some, batch), settings.temperature)
                found["teacher"] = imitated.item()
                loss = (1 - settings.teacher_weight) * loss + settings.teacher_weight * imitated
            loss.backward()  # type: ignore[no-untyped-call]
        if not nn.utils.clip_grad_norm_(self._learned(), CLIP).isfinite():
            raise UsageError(f"the gradients of step {self.step + 1} are not finite", "use a smaller --rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masks.apply(self.vlm)
        self.step += 1
        return found

    def finish(self) -> None:
        """The ranges of a projector in static int8, measured once more with what it has learned."""
        if any(self._observers()):
            some = self.lessons[:_OBSERVED]
            measure_statistics(self.vlm.projector, lambda: self.vlm.tokens(self.features(some)))

    def _observers(self) -> Iterator[Observer]:
        return (layer for layer in self.vlm.projector.modules() if isinstance(layer, Observer))

    def _batch(self) -> tuple[list[Lesson], Batch]:
        """The pictures of this step: each epoch has an order of its own."""
        size = min(self.settings.batch, len(self.lessons))
        epoch, at = divmod(self.step, len(self.lessons) // size)
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.lessons))
        some = [self.lessons[int(i)] for i in order[at * size : (at + 1) * size]]
        return some, pack(self.checkpoint, [lesson.turns(epoch) for lesson in some])

    def _learned(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _set_rates(self) -> None:
        rise = (self.step + 1) / max(1, round(WARM_UP * self.settings.steps))
        fall = 0.5 + 0.5 * math.cos(math.pi * self.step / self.settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, rise) * fall

    def save(self, path: Path) -> None:
        """Write beside, then rename."""
        state = {
            "facts": self.facts, "step": self.step, "optimizer": self.optimizer.state_dict(),
            "learned": [parameter.data for parameter in self._learned()],
        }  # fmt: skip
        partial = path.with_name(f"{path.name}.new")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on where a run with the same settings, model and data ended.

        Raises:
            UsageError: the state is of another run.
        """
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state["facts"] != self.facts:
            raise UsageError(
                f"{path} is of a run with other settings, another model or other data",
                "remove it, or pass another --output",
            )
        for parameter, value in zip(self._learned(), state["learned"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def state_path(folder: Path) -> Path:
    """Where a run to this folder keeps what it has learned so far."""
    return folder.with_name(f".{folder.name}.training")


def run(settings: Settings, console: Console) -> Path:
    """Train, and write the checkpoint; its folder is returned.

    Raises:
        UsageError, CheckpointError, Unsupported: what is asked for cannot be.
    """
    settings.check()
    torch.set_num_threads(settings.threads)
    refuse_destination(settings.output, settings.force, output.MARK)
    trainer, kept = Trainer(settings), state_path(settings.output)
    if kept.exists():
        trainer.resume(kept)
        console.note(f"resumed at step {trainer.step}")
    history: list[dict[str, float]] = []
    start, first = time.perf_counter(), trainer.step
    with console.progress("training", settings.steps, done=trainer.step) as advance:
        while trainer.step < settings.steps:
            history.append(trainer.advance())
            advance()
            if trainer.step % LOG_EVERY == 0 or trainer.step == settings.steps:
                each = (time.perf_counter() - start) / (trainer.step - first)
                console.note(f"step {trainer.step}/{settings.steps}: {_told(history)}, {each:.2f} s each")
            if trainer.step % settings.save_every == 0 and trainer.step < settings.steps:
                trainer.save(kept)
    trainer.finish()
    facts = settings.facts() | {"losses": _means(history)}
    output.write(trainer.checkpoint, trainer.vlm, settings.output, facts, settings.force)
    kept.unlink(missing_ok=True)
    return settings.output


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    """Mean losses of the last steps."""
    last = history[-LOG_EVERY:]
    return {name: round(sum(row[name] for row in last) / len(last), 6) for name in (last[0] if last else ())}


def _told(history: list[dict[str, float]]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in _means(history).items())
