"""The projector and the language model while they are trained: LDPv2 and a small Llama, written plainly.

Parameter names are the published ones. One sequence holds a picture and many turns: the system text and the image
come first, every turn sees them and itself, and starts at the same position. So each turn equals a single turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

VISION_WIDTH = 192
WIDTH = 256
INNER = 768
LAYERS = 4
HEADS = 4
HEAD = WIDTH // HEADS
THETA = 10000.0
EPS = 1e-5
CELLS = 12  # per side, after pooling


class Mlp2(nn.Module):
    """LDPv2's feature transformation."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(VISION_WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.mlp(x))


class Peg(nn.Module):
    """LDPv2's positional encoding: a depthwise convolution with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.peg(x) + x)


class Projector(nn.Module):
    """ldpnetv2: [batch, 576, 192] → [batch, 144, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp2()
        self.peg = Peg()
        nn.init.normal_(self.peg.peg[0].weight, std=0.02)
        nn.init.zeros_(self.peg.peg[0].bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mlp(features)
        batch = x.shape[0]
        # AdaptiveAvgPool2d(12) of a 24×24 grid is the mean of 2×2 blocks.
        x = x.view(batch, CELLS, 2, CELLS, 2, WIDTH).mean((2, 4)).permute(0, 3, 1, 2).contiguous()
        return self.peg(x).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Places:
    """Rotations and mask of one packed batch. cos, sin [batch, 1, tokens, HEAD]; mask [batch, 1, tokens, tokens]."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


def places(positions: Tensor, turns: Tensor) -> Places:
    """positions and turns [batch, tokens]; turn 0 is the shared prefix, −1 padding (which sees the prefix)."""
    frequency = THETA ** (-torch.arange(0, HEAD, 2) / HEAD)
    angle = (positions[:, :, None] * frequency).repeat(1, 1, 2)[:, None]
    index = torch.arange(positions.shape[1])
    same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
    seen = same & (index[:, None] >= index[None, :])
    mask = torch.zeros(seen.shape).masked_fill_(~seen, -1e9)[:, None]
    return Places(angle.cos(), angle.sin(), mask)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, (WIDTH,), self.weight, EPS)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, at: Places, first: int) -> Tensor:
        """[batch, tokens, WIDTH] → the tokens from `first` on."""
        batch, tokens, _ = x.shape
        q = self.q_proj(x[:, first:]).view(batch, tokens - first, HEADS, HEAD).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, HEADS, HEAD).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, HEADS, HEAD).transpose(1, 2)
        q = rotate(q, at.cos[:, :, first:], at.sin[:, :, first:]) * HEAD**-0.5
        scores = q @ rotate(k, at.cos, at.sin).transpose(2, 3)
        mixed = torch.softmax(scores.add_(at.mask[:, :, first:]), dim=-1) @ v
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens - first, WIDTH)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = Mlp()
        self.input_layernorm = RMSNorm()
        self.post_attention_layernorm = RMSNorm()

    def forward(self, x: Tensor, at: Places, first: int) -> Tensor:
        x = x[:, first:] + self.self_attn(self.input_layernorm(x), at, first)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Language(nn.Module):
    """LlamaModel's embed_tokens, layers and norm, and lm_head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=0.02)
        for layer in self.layers:
            start(cast(Layer, layer))

    def forward(self, embedded: Tensor, at: Places, first: int, inputs: list[Tensor] | None = None) -> Tensor:
        """[batch, tokens, WIDTH] → normed states of the tokens from `first` on (the last block skips the others).

        inputs: receives what every block reads.
        """
        x = embedded
        for index, layer in enumerate(self.layers):
            if inputs is not None:
                inputs.append(x)
            x = layer(x, at, first if index == len(self.layers) - 1 else 0)
        return cast(Tensor, self.norm(x))


def start(layer: Layer) -> None:
    """Initial weights that find and copy: a word finds image cells whose tokens resemble it, and takes them over.

    Keys equal queries, strong where the rotation is slow (the match has to reach over 150 positions); the output
    projection undoes the value projection.
    """
    attention, mlp = layer.self_attn, layer.mlp
    slow = torch.arange(HEAD) % (HEAD // 2) >= HEAD // 4
    gain = torch.where(slow, 1.3, 0.4)[:, None]
    with torch.no_grad():
        for head in range(HEADS):
            rows = slice(head * HEAD, (head + 1) * HEAD)
            base = nn.init.orthogonal_(torch.empty(HEAD, WIDTH)) * gain
            attention.q_proj.weight[rows] = base + torch.randn(HEAD, WIDTH) * 0.01
            attention.k_proj.weight[rows] = base + torch.randn(HEAD, WIDTH) * 0.01
        nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(0.4 * attention.v_proj.weight.T + 0.01 * torch.randn(WIDTH, WIDTH))
    nn.init.normal_(mlp.gate_proj.weight, std=WIDTH**-0.5)
    nn.init.normal_(mlp.up_proj.weight, std=WIDTH**-0.5)
    nn.init.normal_(mlp.down_proj.weight, std=INNER**-0.5 * 0.2)
