"""Several pictures, each with many turns in one sequence: the system text and the image come first, every turn sees
them and itself, and starts at the same position. So each turn equals a single turn, and the image is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lessons import Turns

from vlmexport.errors import Unsupported, UsageError
from vlmexport.model import VLM
from vlmexport.processing import messages
from vlmexport.processing.prompt import Views
from vlmexport.source.checkpoint import Checkpoint

_ONE_IMAGE = [Views(((1, 1),))]  # how many visual tokens an image has does not matter here


@dataclass(frozen=True)
class Batch:
    """Tokens of a few pictures' turns; how many visual tokens stand before them does not matter here.

    Attributes:
        before: i64 [n] of the system text.
        ids: i64 [pictures, tokens] of all turns side by side, filled up with 0.
        turns: i64 [pictures, tokens] number of the turn from 1; −1 where there is none.
        places: i64 [pictures, tokens] within the turn, from 0.
        asked: i64 [answers, 2] picture and token whose successor is an answer's token.
        targets: i64 [answers] that successor.
        owners: i64 [answers] number of the turn, counted over the batch from 0.
    """

    before: torch.Tensor
    ids: torch.Tensor
    turns: torch.Tensor
    places: torch.Tensor
    asked: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor

    def right(self, logits: torch.Tensor) -> torch.Tensor:
        """Per turn, whether every token of the answer is the greedy one, which is exact match of greedy decoding."""
        found = torch.ones(int(self.owners.max()) + 1, dtype=torch.bool)
        found[self.owners[logits.argmax(1) != self.targets]] = False
        return found


def pack(checkpoint: Checkpoint, asked: Sequence[Turns]) -> Batch:
    """The questions of each picture as tokens, in the checkpoint's own prompt.

    Raises:
        UsageError: a question that holds ``<image>``, or none at all.
        Unsupported: a model whose pictures are cut into several views.
    """
    if checkpoint.spec.image_processor.mode != "square":
        raise Unsupported(
            f"the pictures of {checkpoint.path} are cut into several views, this recipe trains on one of each",
            "fine-tune it with transformers, and export what that saves",
        )
    if not any(asked):
        raise UsageError("there is nothing to ask about these pictures", "use another stage or other data")
    before: tuple[int, ...] = ()
    rows, numbers, places, answers = [], [], [], []
    count = 0
    for picture, turns in enumerate(asked):
        row: list[int] = []
        number: list[int] = []
        place: list[int] = []
        for turn, (question, answer) in enumerate(turns, start=1):
            prompt = checkpoint.prompts.prompt(messages.asked(question), _ONE_IMAGE)
            (span,) = prompt.spans
            before, after = prompt.ids[: span.start], prompt.ids[span.end :]
            told = checkpoint.prompts.answer(answer)
            ids = [*after, *told[:-1]]
            first = len(row) + len(after) - 1
            answers += [(picture, first + i, target, count) for i, target in enumerate(told)]
            row += ids
            number += [turn] * len(ids)
            place += range(len(ids))
            count += 1
        rows.append(row)
        numbers.append(number)
        places.append(place)
    table = torch.tensor(answers)
    return Batch(
        torch.tensor(before), _filled(rows, 0), _filled(numbers, -1), _filled(places, 0),
        table[:, :2], table[:, 2], table[:, 3],
    )  # fmt: skip


def _filled(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def answer_logits(vlm: VLM, features: torch.Tensor, batch: Batch) -> torch.Tensor:
    """f32 [pictures, patches, vision width] → f32 [answers, vocabulary]: before each token of the answers."""
    visual, language = vlm.tokens(features), cast(Any, vlm.language)
    embed = language.get_input_embeddings()
    before = embed(batch.before).expand(len(visual), -1, -1)
    embeds = torch.cat([before, visual.to(before.dtype), embed(batch.ids)], 1)
    prefix = before.shape[1] + visual.shape[1]
    shared = torch.arange(prefix).expand(len(visual), -1)
    states = language.base_model(
        inputs_embeds=embeds,
        attention_mask=_mask(torch.cat([torch.zeros_like(shared), batch.turns], 1)),
        position_ids=torch.cat([shared, batch.places + prefix], 1),
        use_cache=False,
    ).last_hidden_state
    logits: torch.Tensor = language.lm_head(states[batch.asked[:, 0], batch.asked[:, 1] + prefix])
    return logits.float()


def _mask(turns: torch.Tensor) -> torch.Tensor:
    """i64 [pictures, sequence] number of the turn, 0 of what all see → f32 [pictures, 1, sequence, sequence]."""
    order = torch.arange(turns.shape[1])
    seen = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
    seen = seen & (order[:, None] >= order[None, :])
    return torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]
