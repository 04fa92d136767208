"""The blocks of Mobile-Former. Source: Chen et al. 2022, arXiv:2108.05895; names are those of the authors' release."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

_HEADS_OF_BRIDGE, _HEADS_OF_TOKENS = 2, 4
_SQUEEZE, _FEED_FORWARD = 4, 2


@dataclass(frozen=True)
class Block:
    """One block: expansion before the first product, width, stride, expansion after it.

    With stride 2 it is depthwise, pointwise, depthwise, pointwise; else pointwise, depthwise, pointwise. The first
    block of a model has no second expansion: it is depthwise and pointwise without tokens.
    """

    expansion: int
    width: int
    stride: int
    second: int


def with_norm(conv: nn.Conv2d, *more: nn.Module) -> nn.Sequential:
    """A convolution, its batch norm, and what follows."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), *more)


def _depthwise(width: int, out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, out, 3, stride, 1, groups=width, bias=False)


class _Shuffle(nn.Module):
    """Channel ``g·n + i`` of ``groups`` groups of n becomes channel ``i·groups + g``."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(x, 1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def _shuffle(channels: int, groups: int) -> nn.Module:
    """Needed where the pointwise convolutions have groups."""
    return _Shuffle(channels) if groups > 1 else nn.Identity()


class _DynamicRelu(nn.Module):
    """The larger of two slopes for each channel, told by the first token. Source: Chen et al., arXiv:2003.10027."""

    def __init__(self, token_width: int, channels: int) -> None:
        super().__init__()
        squeezed = token_width // _SQUEEZE
        self.hyper = nn.Sequential(
            nn.Linear(token_width, squeezed), nn.ReLU(), nn.Linear(squeezed, 2 * channels), nn.Hardsigmoid()
        )

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        first, second = (2 * self.hyper(tokens[:, 0]) - 1).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        return torch.maximum(x * (first + 1), x * second)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """f32 [views, n, width] → [views, heads, n, width of a head]."""
    return torch.unflatten(x, 2, (heads, -1)).transpose(1, 2)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """f32 [views, heads, n, width] over [views, heads, m, width] → [views, n, heads · width]."""
    weights = functional.softmax(query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5, -1)
    return (weights @ value).transpose(1, 2).flatten(2)


class _LocalToGlobal(nn.Module):
    """Tokens look at the map, whose values are keys too; a gate for each channel; post-norm."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        self.alpha = nn.Sequential(nn.Linear(token_width, width), nn.Hardsigmoid())
        self.q, self.proj = nn.Linear(token_width, width), nn.Linear(width, token_width)
        self.layer_norm = nn.LayerNorm(token_width)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        local = _heads(x.flatten(2).transpose(1, 2), _HEADS_OF_BRIDGE)
        seen = _attend(_heads(self.q(tokens), _HEADS_OF_BRIDGE), local, local)
        output: torch.Tensor = self.layer_norm(tokens + self.proj(2 * seen * self.alpha(tokens)))
        return output


class _Global(nn.Module):
    """Tokens look at each other, then a feed-forward; post-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _FEED_FORWARD * width
        self.ffn = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.ffn_norm = nn.LayerNorm(width)
        self.q, self.channel_mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        key = _heads(tokens, _HEADS_OF_TOKENS)
        tokens = self.layer_norm(tokens + self.channel_mlp(_attend(_heads(self.q(tokens), _HEADS_OF_TOKENS), key, key)))
        output: torch.Tensor = self.ffn_norm(tokens + self.ffn(tokens))
        return output


class _GlobalToLocal(nn.Module):
    """Every pixel looks at the tokens."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        self.k, self.proj = nn.Linear(token_width, width), nn.Linear(token_width, width)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        local = _heads(x.flatten(2).transpose(1, 2), _HEADS_OF_BRIDGE)
        key, value = (_heads(part(tokens), _HEADS_OF_BRIDGE) for part in (self.k, self.proj))
        return x + torch.unflatten(_attend(local, key, value).transpose(1, 2), 2, x.shape[2:])


class _First(nn.Module):
    """Depthwise and pointwise, without tokens."""

    def __init__(self, width: int, block: Block, groups: int) -> None:
        super().__init__()
        inner = width * block.expansion
        self.conv = nn.Sequential(
            *with_norm(_depthwise(width, inner, block.stride), nn.ReLU6(), _shuffle(width, groups)),
            *with_norm(nn.Conv2d(inner, block.width, 1, groups=groups, bias=False)),
        )
        self.skips = block.stride == 1 and width == block.width

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return (x + y if self.skips else y), tokens


class _Bridged(nn.Module):
    """A block with its bridge: tokens are told of the map, the convolutions' slopes by the tokens, the map of them."""

    def __init__(self, width: int, block: Block, token_width: int) -> None:
        super().__init__()
        self.local_global, self.global_block = _LocalToGlobal(width, token_width), _Global(token_width)
        self.global_local = _GlobalToLocal(block.width, token_width)

    def told(self, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens after a look at the map and at each other."""
        output: torch.Tensor = self.global_block(self.local_global(x, tokens))
        return output


class _Same(_Bridged):
    """Pointwise, depthwise, pointwise."""

    def __init__(self, width: int, block: Block, token_width: int, groups: int) -> None:
        super().__init__(width, block, token_width)
        inner = width * block.expansion
        first = nn.Conv2d(width, inner, 1, groups=groups, bias=False)
        last = nn.Conv2d(inner, block.width, 1, groups=groups, bias=False)
        self.conv1 = with_norm(first, _shuffle(groups, groups))
        self.hyper1 = _DynamicRelu(token_width, inner)
        self.conv2 = with_norm(_depthwise(inner, inner, 1))
        self.hyper2 = _DynamicRelu(token_width, inner)
        self.conv3 = with_norm(last, _shuffle(groups, groups))
        self.skips = width == block.width

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.told(x, tokens)
        y = self.hyper1(self.conv1(x), tokens)
        y = self.conv3(self.hyper2(self.conv2(y), tokens))
        return self.global_local(x + y if self.skips else y, tokens), tokens


class _Halving(_Bridged):
    """Depthwise with stride 2, pointwise; depthwise, pointwise with a skip connection."""

    def __init__(self, width: int, block: Block, token_width: int, groups: int) -> None:
        super().__init__(width, block, token_width)
        first, second = width * block.expansion, block.width * block.second
        self.conv1 = with_norm(_depthwise(width, first, block.stride), _shuffle(width, groups))
        self.hyper1 = _DynamicRelu(token_width, first)
        self.conv2 = with_norm(nn.Conv2d(first, block.width, 1, groups=groups, bias=False))
        self.conv3 = with_norm(_depthwise(block.width, second, 1), _shuffle(block.width, groups))
        self.hyper3 = _DynamicRelu(token_width, second)
        self.conv4 = with_norm(nn.Conv2d(second, block.width, 1, groups=groups, bias=False))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.told(x, tokens)
        y = self.conv2(self.hyper1(self.conv1(x), tokens))
        y = y + self.conv4(self.hyper3(self.conv3(y), tokens))
        return self.global_local(y, tokens), tokens


def make(width: int, block: Block, token_width: int, groups: int) -> nn.Module:
    """A block for maps of ``width`` channels: f32 [views, channels, height, width] and [views, tokens, token width]
    → both anew."""
    if not block.second:
        return _First(width, block, groups)
    kind = _Halving if block.stride == 2 else _Same
    return kind(width, block, token_width, groups)
