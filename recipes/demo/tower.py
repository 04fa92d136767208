"""The vision tower while it is trained: transformers' CLIPVisionModel, written plainly so that two cores are enough.

Parameter names are CLIP's. Two additions for training: a window of the position table, so that a crop is seen at
the positions it has in the picture, and heads that say for every patch what is on it and where it is.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

GRID = 24  # patches per side of a 336-pixel picture
WIDTH = 192
INNER = 768
LAYERS = 6
USED_LAYERS = 5  # mm_vision_select_layer -2: the last block and post_layernorm are never read
HEADS = 3
PATCH = 14


class Attention(nn.Module):
    """Plain matmul–softmax–matmul: on CPU faster to train than the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.k_proj = nn.Linear(WIDTH, WIDTH)
        self.v_proj = nn.Linear(WIDTH, WIDTH)
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, WIDTH] → the same."""
        batch, tokens, _ = x.shape
        split = (batch, tokens, HEADS, WIDTH // HEADS)
        q = (self.q_proj(x) * (WIDTH // HEADS) ** -0.5).view(split).transpose(1, 2)
        k = self.k_proj(x).view(split).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        mixed = torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v
        return cast(Tensor, self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, WIDTH)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, INNER)
        self.fc2 = nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """quick_gelu(x) = x·σ(1.702 x) = silu(1.702 x) / 1.702: scaling the weights costs less than scaling x."""
        inner = nn.functional.linear(x, self.fc1.weight * 1.702, self.fc1.bias * 1.702)
        return nn.functional.linear(nn.functional.silu(inner), self.fc2.weight / 1.702, self.fc2.bias)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.layer_norm1 = nn.LayerNorm(WIDTH)
        self.mlp = Mlp()
        self.layer_norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return cast(Tensor, x + self.mlp(self.layer_norm2(x)))


class Embeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.patch_embedding = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH, bias=False)
        self.position_embedding = nn.Embedding(GRID * GRID + 1, WIDTH)
        with torch.no_grad():
            self.position_embedding.weight.copy_(torch.from_numpy(sine_table(0.5)))

    def forward(self, pixels: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """pixels [batch, 3, h·14, w·14]; rows [batch, h] and cols [batch, w]: places in the 24×24 grid."""
        batch = pixels.shape[0]
        h, w = rows.shape[1], cols.shape[1]
        cut = pixels.view(batch, 3, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w, -1)
        patches = cut @ self.patch_embedding.weight.view(WIDTH, -1).T
        places = (rows[:, :, None] * GRID + cols[:, None, :] + 1).view(batch, h * w)
        first = self.class_embedding + self.position_embedding.weight[0]
        patches = patches + self.position_embedding(places)
        return torch.cat([first.expand(batch, 1, WIDTH), patches], dim=1)


class Tower(nn.Module):
    """The blocks that are read, of CLIPVisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.pre_layrnorm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(USED_LAYERS))
        for name, parameter in self.named_parameters():
            if name.endswith("proj.weight") or (".fc" in name and name.endswith("weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * (0.5 if "out_proj" in name else 1.0))
            elif name.endswith("proj.bias") or ".fc" in name:
                nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Features of layer −2 without the class token: [batch, h·w, WIDTH]."""
        x = self.pre_layrnorm(self.embeddings(pixels, rows, cols))
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, x[:, 1:])

    def whole(self, pixels: Tensor) -> Tensor:
        """Features of whole pictures, [batch, 3, 336, 336] → [batch, 576, WIDTH]."""
        places = torch.arange(GRID).expand(pixels.shape[0], GRID)
        return cast(Tensor, self(pixels, places, places))


class Heads(nn.Module):
    """What and where, per patch; dropped after training."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.what = nn.Linear(WIDTH, classes)
        self.row = nn.Linear(WIDTH, GRID)
        self.col = nn.Linear(WIDTH, GRID)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.norm(features)
        return self.what(x), self.row(x), self.col(x)


def sine_table(amplitude: float) -> np.ndarray:
    """2-D sine/cosine position table [577, WIDTH]; noise alone teaches nothing for hundreds of steps."""
    quarter = WIDTH // 4
    frequency = np.exp(-np.arange(quarter) / quarter * np.log(50.0)) * 1.5
    angle = np.arange(GRID)[:, None] * frequency[None, :]
    axis = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows = np.repeat(axis, GRID, axis=0)
    cols = np.tile(axis, (GRID, 1))
    table = np.concatenate([np.zeros((1, WIDTH)), np.concatenate([rows, cols], axis=1)])
    return (table * amplitude).astype(np.float32)
