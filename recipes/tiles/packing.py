"""Many turns about one picture in one sequence, each equal to a turn of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from recipes.tiles.model import processor
from recipes.tiles.scenes import NAMES, PLACES, Question, plural
from recipes.tiles.vocabulary import tokenizer

NOBODY = -1


@dataclass(frozen=True)
class Turn:
    """Ids of question and answer; the answer's begin at ``answer``. ``name`` and ``place``: where the question names an
    object, and the words of a place."""

    ids: list[int]
    answer: int
    name: list[int]
    place: list[int]


@dataclass(frozen=True)
class Packed:
    """A batch of pictures with their turns.

    before [p]: ids up to the end of the image, the same for all; ids [n, t]: the turns, padded; positions [n, p + t];
    mask [n, 1, p + t, p + t], added to the scores; answers [m, 2]: (picture, token of the sequence) whose successor is
    counted; targets [m]: that successor; owners [m]: number of the question; questions: all of them, in that order;
    picture [q] of each question; asking [q]: the token before its answer; names [q] and places [q, 2]: tokens of the
    sequence, or NOBODY.
    """

    before: Tensor
    ids: Tensor
    positions: Tensor
    mask: Tensor
    answers: Tensor
    targets: Tensor
    owners: Tensor
    questions: list[Question]
    picture: Tensor
    asking: Tensor
    names: Tensor
    places: Tensor


@cache
def before(grid: int) -> list[int]:
    """Ids from the start to the end of an image that is cut into grid × grid tiles, or into none (0)."""
    image = processor().replace_image_token({"rows": [[grid]], "cols": [[grid]]}, 0)
    return list(tokenizer()(f"<|im_start|>User:{image}", add_special_tokens=False)["input_ids"])


@cache
def _pieces() -> Any:
    return tokenizer()


@cache
def turn(text: str, answer: str) -> Turn:
    """One question with its answer.

    Raises:
        ValueError: the answer changes how the question is tokenized.
    """
    pieces = _pieces()
    question = f"{text}<end_of_utterance>\nAssistant:"
    prompt = pieces(question, add_special_tokens=False)["input_ids"]
    ids = pieces(f"{question} {answer}<end_of_utterance>", add_special_tokens=False)["input_ids"]
    if ids[: len(prompt)] != prompt:
        raise ValueError(f"the answer changes how {text!r} is tokenized")
    words = pieces.convert_ids_to_tokens(prompt)
    names = {f"Ġ{form}" for name in NAMES for form in (name, plural(name))}
    places = {f"Ġ{word}" for place in PLACES for word in place.split()}
    return Turn(
        ids, len(prompt), [at for at, word in enumerate(words) if word in names],
        [at for at, word in enumerate(words) if word in places],
    )  # fmt: skip


def pack(asked: list[list[Question]], grid: int) -> Packed:
    """asked: the questions of each picture; grid: tiles per side, 0 for the picture in one view."""
    first = before(grid)
    prefix = len(first)
    rows, positions, turns, answers, targets, owners = [], [], [], [], [], []
    questions: list[Question] = []
    pictures, asking, names, places = [], [], [], []
    for picture, some in enumerate(asked):
        row: list[int] = []
        place, owner = list(range(prefix)), [0] * prefix
        for number, question in enumerate(some, start=1):
            one = turn(question.text, question.answer)
            start = prefix + len(row)
            for at in range(one.answer - 1, len(one.ids) - 1):
                answers.append((picture, start + at))
                targets.append(one.ids[at + 1])
                owners.append(len(questions))
            names.append(start + one.name[0] if one.name else NOBODY)
            places.append([start + at for at in one.place] if one.place else [NOBODY, NOBODY])
            pictures.append(picture)
            asking.append(start + one.answer - 1)
            questions.append(question)
            row += one.ids[:-1]
            place += range(prefix, prefix + len(one.ids) - 1)
            owner += [number] * (len(one.ids) - 1)
        rows.append(row)
        positions.append(place)
        turns.append(owner)
    total = prefix + max(map(len, rows))
    belongs = torch.tensor([owner + [NOBODY] * (total - len(owner)) for owner in turns])
    seen = (belongs[:, :, None] == belongs[:, None, :]) | (belongs[:, None, :] == 0)
    seen = seen & torch.ones(total, total, dtype=torch.bool).tril()
    return Packed(
        before=torch.tensor(first),
        ids=torch.tensor([row + [0] * (total - prefix - len(row)) for row in rows]),
        positions=torch.tensor([place + [0] * (total - len(place)) for place in positions]),
        mask=torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None],
        answers=torch.tensor(answers),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        questions=questions,
        picture=torch.tensor(pictures),
        asking=torch.tensor(asking),
        names=torch.tensor(names),
        places=torch.tensor(places),
    )


def run(model: Any, visual: Tensor, packed: Packed) -> tuple[Tensor, tuple[Tensor, ...]]:
    """visual [n, views·SEEN, hidden] → logits [m, vocabulary] where answers are counted, and what every block reads."""
    table = model.model.text_model.embed_tokens
    first = table(packed.before).expand(len(visual), -1, -1)
    where = (packed.before == model.config.image_token_id).nonzero().flatten()
    embedded = torch.cat([first.index_copy(1, where, visual), table(packed.ids)], dim=1)
    done = model.model.text_model(
        inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False,
        output_hidden_states=True,
    )  # fmt: skip
    states = done.last_hidden_state[packed.answers[:, 0], packed.answers[:, 1]]
    return nn.functional.linear(states, model.lm_head.weight), done.hidden_states


def exact(logits: Tensor, packed: Packed) -> list[bool]:
    """Per question, whether every token of the answer and its end are the greedy ones: exact match of greedy text."""
    right = torch.ones(len(packed.questions), dtype=torch.bool)
    right[packed.owners[logits.argmax(1) != packed.targets]] = False
    return [bool(one) for one in right]
