"""Teach a few heads where to look, for as long as nothing reads what they bring.

"Is there a cat?" stays at chance for a long time when the answer alone is the teacher: a head that finds the cat
is of no use until another reads it, and the other way round. So two heads of three blocks are told:

1. a name in a question looks at the cells that show it, or at itself where there are none;
2. the tokens before each token of an answer look at the name that was asked for;
3. the token before a name in an answer looks at the cells that show it.
"""

from __future__ import annotations

import torch
from language import HEAD, HEADS, Layer, Places, rotate
from packing import VISUAL, Packed
from torch import Tensor, nn

TAUGHT = 2  # heads


def missing(layer: nn.Module, x: Tensor, at: Places, picture: Tensor, token: Tensor, wanted: Tensor) -> Tensor:
    """−log of the attention that the taught heads give to the wanted tokens, averaged.

    x [n, tokens, WIDTH]: what the block reads; picture, token [k]: who looks; wanted [k, tokens]: at what.
    """
    if not isinstance(layer, Layer):
        raise TypeError("not a block of the language model")
    attention, normed, tokens = layer.self_attn, layer.input_layernorm(x), x.shape[1]
    k = attention.k_proj(normed).view(len(x), tokens, HEADS, HEAD)[:, :, :TAUGHT].transpose(1, 2)
    k = rotate(k, at.cos, at.sin)[picture]
    q = attention.q_proj(normed[picture, token]).view(-1, HEADS, 1, HEAD)[:, :TAUGHT]
    q = rotate(q, at.cos[picture, :, token].unsqueeze(1), at.sin[picture, :, token].unsqueeze(1))
    scores = (q @ k.transpose(2, 3) * HEAD**-0.5).squeeze(2) + at.mask[picture, :, token]
    given = scores.masked_fill(~wanted[:, None], -1e9).logsumexp(2) - scores.logsumexp(2)
    return -given.mean()


def cells_of(packed: Packed, cells: Tensor, picture: Tensor, ids: Tensor, names: Tensor) -> Tensor:
    """Which tokens are cells that show what these ids name, [k, tokens]; no cell where an id names no class."""
    known = torch.full((int(max(names.max(), packed.targets.max())) + 1,), -1)
    known[names] = torch.arange(len(names))
    first = len(packed.before)
    shown = torch.zeros(len(picture), first + VISUAL + packed.ids.shape[1], dtype=torch.bool)
    classes = known[ids][:, None]
    shown[:, first : first + VISUAL] = (cells[picture] == classes) & (classes >= 0)
    return shown


def look_loss(
    layers: nn.ModuleList, inputs: list[Tensor], packed: Packed, cells: Tensor, names: Tensor, every: bool
) -> Tensor:
    """The lessons, one block each; the first alone unless `every`.

    cells [n, 144]: class per cell; names [classes]: token of each sprite.
    """
    start = len(packed.before) + VISUAL
    picture, name, asking = packed.named[:, 0], packed.named[:, 1] + start, packed.named[:, 2] + start
    itself = torch.zeros(len(picture), inputs[0].shape[1], dtype=torch.bool)
    itself[torch.arange(len(picture)), name] = True
    shown = cells_of(packed, cells, picture, packed.named_ids, names)
    wanted = torch.where(shown.any(1, keepdim=True), shown, itself)
    loss = missing(layers[0], inputs[0], packed.where, picture, name, wanted)
    if not every:
        return loss
    loss = loss + missing(layers[1], inputs[1], packed.where, picture, asking, itself)
    answering = cells_of(packed, cells, packed.answers[:, 0], packed.targets, names)
    some = answering.any(1)
    who, token = packed.answers[some, 0], packed.answers[some, 1] + start
    return loss + missing(layers[2], inputs[2], packed.where, who, token, answering[some])
