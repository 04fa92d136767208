"""A sample as the float model reads it: the one place where prompt, images and an answer become a decoder's inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.views import ViewCount
from vlmexport.model import VLM
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.processing.prompt import Prompt
from vlmexport.processing.prompt_builder import CheckpointPrompts


@dataclass(frozen=True, eq=False)
class Asked:
    """A sample's question, and what was seen of its images.

    Attributes:
        room: most tokens of an answer.
        views: how many its images have.
    """

    prompt: Prompt
    tokens: list[torch.Tensor]
    room: int
    views: ViewCount

    def inputs(self, vlm: VLM, answer: Iterable[int] = ()) -> DecoderInputs:
        """With an answer behind it, or the beginning of one."""
        return vlm.inputs(self.prompt.answered(answer), self.tokens)


def ask(vlm: VLM, prompts: CheckpointPrompts, sample: Sample) -> Asked:
    """Look at the images of a sample, and make its prompt.

    Raises:
        UsageError: the prompt is longer than the model's context; the message names the sample.
    """
    seen = [vlm.see(one.image()) for one in sample.alone()]
    prompt = prompts.prompt(sample.messages, [one.views for one in seen])
    room = prompt.room(vlm.spec.language.max_positions, f"the prompt of sample {sample.id}")
    views = sum((ViewCount.of(one.views) for one in seen), ViewCount())
    return Asked(prompt, [one.tokens for one in seen], room, views)
