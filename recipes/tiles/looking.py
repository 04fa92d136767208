"""Teach a few heads where to look, for as long as nothing reads what they bring.

An answer alone is a poor teacher at first: a head that finds the cat is of no use until another reads what it brings,
and the other way round. So in three blocks a head of each group of keys is told:

1. a visual token looks at the marker of its tile;
2. the name in a question looks at the tokens that show it, or at itself where there are none; the token before an
   answer looks at the words for a place, one head at that of the row and one at that of the column;
3. the token before an answer looks at the name that was asked for, or at the token that shows what lies at the place.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from recipes.tiles.model import CELLS, SEEN
from recipes.tiles.packing import NOBODY, Packed
from recipes.tiles.scenes import NAMES, PLACES, plural
from recipes.tiles.views import NOTHING
from recipes.tiles.vocabulary import IMAGE, tokenizer

IMAGE_ID = tokenizer().convert_tokens_to_ids(IMAGE)
_SINGULAR = {plural(name): name for name in NAMES}


def missing(text: Any, block: int, states: Tensor, packed: Packed, who: Tensor, wanted: Tensor) -> Tensor:
    """−log of the attention that the taught heads of a block give to the wanted tokens, averaged.

    states [n, tokens, hidden]: what the block reads; who [k, 2]: (picture, token) that looks; wanted [k, taught
    heads or 1, tokens].
    """
    layer = text.layers[block]
    attention, normed = layer.self_attn, layer.input_layernorm(states)
    head, every = attention.head_dim, attention.num_key_value_groups
    q = attention.q_proj(normed).unflatten(-1, (-1, head)).transpose(1, 2)[:, ::every]
    k = attention.k_proj(normed).unflatten(-1, (-1, head)).transpose(1, 2)
    q, k = apply_rotary_pos_emb(q, k, *text.rotary_emb(normed, packed.positions))
    scores = (q @ k.transpose(2, 3) * head**-0.5 + packed.mask)[who[:, 0], :, who[:, 1]]
    given = scores.masked_fill(~wanted, -1e9).logsumexp(2) - scores.logsumexp(2)
    return cast(Tensor, -given.mean())


def shown_by(packed: Packed, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What every token of the sequence shows, [n, tokens], and the places of the visual ones, [views·SEEN].

    labels [n, views, SEEN]: classes or NOTHING. A global view beside tiles counts as showing nothing.
    """
    where = (packed.before == IMAGE_ID).nonzero().flatten()
    shown = torch.full((len(labels), packed.positions.shape[1]), NOTHING)
    tiles = max(1, labels.shape[1] - 1)
    shown[:, where[: tiles * SEEN]] = labels[:, :tiles].flatten(1)
    return shown, where


def there(packed: Packed, shown: Tensor, views: int, where: Tensor) -> Tensor:
    """For every question "what", the tokens that show the answer at its place, [q, tokens]."""
    tiles = max(1, views - 1)
    side = round(tiles**0.5)
    cell = torch.arange(tiles * SEEN)
    inside, tile = cell % SEEN, cell // SEEN
    row, column = tile // side * CELLS + inside // CELLS, tile % side * CELLS + inside % CELLS
    region = torch.full((shown.shape[1],), NOBODY)
    region[where[: tiles * SEEN]] = row // side * 3 + column // side
    asked = [question if question.kind == "what" else None for question in packed.questions]
    wanted = torch.tensor([next(i for i, p in enumerate(PLACES) if p in q.text) if q else NOBODY - 1 for q in asked])
    answers = torch.tensor([NAMES.index(q.answer) if q else NOTHING for q in asked])
    return (shown[packed.picture] == answers[:, None]) & (region[None] == wanted[:, None])


def look_loss(model: Any, states: tuple[Tensor, ...], packed: Packed, labels: Tensor) -> Tensor:
    """The lessons together. labels [n, views, SEEN]: what every visual token shows."""
    text, total = model.model.text_model, states[0].shape[1]
    shown, where = shown_by(packed, labels)
    loss = states[0].new_zeros(())
    if labels.shape[1] > 1:
        who = (shown != NOTHING).nonzero()
        markers = where[torch.searchsorted(where, who[:, 1].contiguous()) // SEEN * SEEN] - 1
        loss = loss + missing(text, 0, states[0], packed, who, _one(markers, total)[:, None])
    named = packed.names != NOBODY
    asking = torch.stack([packed.picture, packed.asking], 1)

    names = torch.stack([packed.picture, packed.names], 1)[named]
    texts = [question.text for question in packed.questions if question.kind != "what"]
    ids = torch.tensor([_named(text) for text in texts])
    cells = shown[packed.picture[named]] == ids[:, None]
    cells = torch.where(cells.any(1, keepdim=True), cells, _one(packed.names[named], total))
    places = torch.stack([_one(packed.places[~named, word], total) for word in range(2)], 1)
    loss = loss + missing(text, 1, states[1], packed, names, cells[:, None])
    loss = loss + missing(text, 1, states[1], packed, asking[~named], places)

    about_name = named[packed.owners]
    itself = _one(packed.names[packed.owners[about_name]], total)
    object_there = there(packed, shown, labels.shape[1], where)
    some = object_there.any(1)
    loss = loss + missing(text, 2, states[2], packed, packed.answers[about_name], itself[:, None])
    return loss + missing(text, 2, states[2], packed, asking[some], object_there[some][:, None])


def _one(at: Tensor, total: int) -> Tensor:
    """[k] → [k, total], true at one token each."""
    return torch.arange(total)[None] == at[:, None]


def _named(text: str) -> int:
    """The class that a question names."""
    words = [_SINGULAR.get(word, word) for word in text.rstrip("?").split()]
    return next(NAMES.index(word) for word in words if word in NAMES)
