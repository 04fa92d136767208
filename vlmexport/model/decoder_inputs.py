"""What a language model reads, beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """One prompt, its images in place, and what is known of an answer behind it.

    Whoever hands it on need not know its fields: what a kind of language model reads more than these is one of them.

    Attributes:
        embeds: f32 [1, positions, hidden].
        is_image: bool [positions].
    """

    embeds: torch.Tensor
    is_image: torch.Tensor

    def __len__(self) -> int:
        return self.embeds.shape[1]

    def arguments(self) -> dict[str, torch.Tensor]:
        """What ``forward`` of the language model takes of it, by name."""
        return {"inputs_embeds": self.embeds}


@dataclass(frozen=True, eq=False)
class Batch:
    """Several of them, as long as the longest.

    Attributes:
        embeds: f32 [prompts, positions, hidden], zeros where there is padding.
        mask: i64 [prompts, positions], 0 where there is padding.
        is_image: bool [prompts, positions].
    """

    embeds: torch.Tensor
    mask: torch.Tensor
    is_image: torch.Tensor


def padded(prompts: Sequence[DecoderInputs], on_the_left: bool) -> Batch:
    """A batch; padding stands on the left of its prompts, or on their right."""
    longest = max(map(len, prompts))
    embeds = torch.zeros(len(prompts), longest, prompts[0].embeds.shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    is_image = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for i, one in enumerate(prompts):
        place = slice(longest - len(one), longest) if on_the_left else slice(len(one))
        embeds[i, place], mask[i, place], is_image[i, place] = one.embeds[0], 1, one.is_image
    return Batch(embeds, mask, is_image)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Where each token of a mask [prompts, positions] stands in its prompt, i64; 0 where there is padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)
