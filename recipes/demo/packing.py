"""Many turns about one picture in one sequence, and batches of such sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from language import CELLS, Language, Places, places
from prompts import Prompts
from torch import Tensor, nn

from vlmexport.demo.questions import Question

VISUAL = CELLS * CELLS
NAMING = ("exists", "where")  # questions that end with an object's name


@dataclass(frozen=True)
class Packed:
    """A batch of pictures with their turns.

    before: ids of the system text [p]; ids [n, t] of the turns, padded; where: rotations and mask of prefix and
    turns together; answers [m, 2]: (picture, turn token) whose successor is counted; targets [m]: that successor;
    owners [m]: number of the question, counted over the batch; questions: all of them, in that order;
    named [k, 3]: (picture, turn token, turn token before a token of the answer) of objects that are asked for by name,
    named_ids [k]: those names.
    """

    before: Tensor
    ids: Tensor
    where: Places
    answers: Tensor
    targets: Tensor
    owners: Tensor
    questions: list[Question]
    named: Tensor
    named_ids: Tensor


def pack(asked: list[list[Question]], prompts: Prompts) -> Packed:
    """asked: the questions of each picture."""
    before = prompts.before()
    prefix = len(before) + VISUAL
    rows, positions, turns, answers, targets, owners = [], [], [], [], [], []
    questions: list[Question] = []
    named = []
    for picture, some in enumerate(asked):
        row: list[int] = []
        place, turn_of = list(range(prefix)), [0] * prefix
        for number, question in enumerate(some, start=1):
            ids, prompt = prompts.turn(question)
            for at in range(prompt - 1, len(ids) - 1):
                answers.append((picture, len(row) + at))
                targets.append(ids[at + 1])
                owners.append(len(questions))
            if question.kind in NAMING:
                mark = len(prompts.pieces.encode(f"\n{question.text.removesuffix('?')}")) - 1
                named += [
                    (picture, len(row) + mark, len(row) + at, ids[mark]) for at in range(prompt - 1, len(ids) - 2)
                ]
            row += ids[:-1]
            place += range(prefix, prefix + len(ids) - 1)
            turn_of += [number] * (len(ids) - 1)
            questions.append(question)
        rows.append(row)
        positions.append(place)
        turns.append(turn_of)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    total = prefix + longest
    where = places(
        torch.tensor([p + [0] * (total - len(p)) for p in positions]),
        torch.tensor([t + [-1] * (total - len(t)) for t in turns]),
    )
    found = torch.tensor(named).view(-1, 4)
    return Packed(
        before=torch.tensor(before),
        ids=ids,
        where=where,
        answers=torch.tensor(answers),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        questions=questions,
        named=found[:, :3],
        named_ids=found[:, 3],
    )


def answer_logits(language: Language, visual: Tensor, packed: Packed, inputs: list[Tensor] | None = None) -> Tensor:
    """visual [n, 144, WIDTH] → logits [m, vocabulary] at the answers' places only; inputs as in Language.forward."""
    before = language.embed_tokens(packed.before).expand(visual.shape[0], -1, -1)
    embedded = torch.cat([before, visual, language.embed_tokens(packed.ids)], dim=1)
    states = language(embedded, packed.where, len(packed.before) + VISUAL, inputs)
    return nn.functional.linear(states[packed.answers[:, 0], packed.answers[:, 1]], language.lm_head.weight)


def exact(logits: Tensor, packed: Packed) -> list[bool]:
    """Per question, whether every answer token up to EOS is the greedy one: the same as exact match of greedy text."""
    right = torch.ones(len(packed.questions), dtype=torch.bool)
    right[packed.owners[logits.argmax(1) != packed.targets]] = False
    return [bool(r) for r in right]
