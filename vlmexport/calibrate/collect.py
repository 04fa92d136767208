"""Samples → statistics, shard by shard: the float reference runs over a few samples at a time.

Statistics of the shards are added in the order of the samples. So one run, one that was interrupted and continued, and
a run on several machines add the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import DynamicCache

from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import Statistics
from vlmexport.checkpoint import Tokenizer
from vlmexport.errors import NotEnoughData
from vlmexport.model import VLM

SHARD = 8
"""Samples that go through the decoder together: each of its weights is read, and converted, once for all of them."""

MAX_ANSWER = 64
"""Longest answer, in tokens, that is generated for a sample without one."""

LARGE, LARGE_ANSWER = 4_000_000_000, 8
"""Parameters from which on a decoder's answers are cut at so many tokens. Such a decoder is rarely held in memory, and
a token then costs a conversion of all its weights: 64 of them would take twice as long as the prompts. The size of the
model decides, not the memory of the machine, so that statistics are the same everywhere."""


def shards(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples in order, ``SHARD`` at a time.

    Raises:
        NotEnoughData: no samples.
    """
    if not samples:
        raise NotEnoughData("there are no calibration samples", "pass a folder of images or a manifest")
    return [list(samples[start : start + SHARD]) for start in range(0, len(samples), SHARD)]


def collect(
    vlm: VLM, tokenizer: Tokenizer, samples: Sequence[Sample], advance: Callable[[], None] = lambda: None
) -> Statistics:
    """Statistics of every ``Linear`` and ``Conv2d`` input of the components that the model has.

    Raises:
        NotEnoughData: no samples.
        CheckpointError: activations that are not finite.
    """
    total = Statistics()
    for shard in shards(samples):
        total += collect_shard(vlm, tokenizer, shard, advance)
    return total


def collect_shard(
    vlm: VLM, tokenizer: Tokenizer, samples: Sequence[Sample], advance: Callable[[], None] = lambda: None
) -> Statistics:
    """Statistics of a few samples: images one by one, then, where there is a decoder, all sequences together.

    A sequence is prompt, image and answer, so that the decoder's statistics hold what decoding will see: the sample's
    own answer where it has one, else the model's greedy answer, of at most ``MAX_ANSWER`` or ``LARGE_ANSWER`` tokens. A
    classifier reads prompt and image alone.
    """
    with Recorder(vlm) as recorder, torch.inference_mode():
        decodes = "language" in vlm.components
        tokens = []
        for sample in samples:
            tokens.append(vlm.tokens(vlm.features(vlm.pixels(sample.image()))))
            if not decodes:
                advance()
        if decodes:
            _decode(vlm, tokenizer, samples, tokens, recorder)
            for _ in samples:
                advance()
    return Statistics(dict(sorted(recorder.layers.items())), tuple(sample.id for sample in samples))


def _decode(
    vlm: VLM, tokenizer: Tokenizer, samples: Sequence[Sample], tokens: list[torch.Tensor], recorder: Recorder
) -> None:
    """Run the sequences as one batch, padded on the left, and go on greedily with those that have no answer; padded on
    the right, and no further, where there is no answer to go on with."""
    embeds, images, generates = [], [], vlm.spec.language.generates
    for sample, visual in zip(samples, tokens, strict=True):
        prompt = tokenizer.prompt(vlm.spec.prompt, sample.question)
        is_given = generates and sample.answer is not None
        ids = [*tokenizer.encode(sample.answer or "", bos=False), vlm.spec.eos_token_id] if is_given else []
        embeds.append(torch.cat([vlm.prompt_embeds(prompt, visual), vlm.embed(ids)], 1)[0])
        images.append(slice(len(prompt.before), len(prompt.before) + visual.shape[-2]))
    batch, mask, is_image = _padded(embeds, images, on_the_left=generates)
    recorder.is_image, recorder.counted = is_image.flatten().numpy(), mask.bool().flatten().numpy()
    if not generates:
        vlm.language(inputs_embeds=batch, attention_mask=mask)
        return
    cache = DynamicCache()
    last = _step(vlm, batch, mask, cache)
    growing = torch.tensor([sample.answer is None for sample in samples])
    for _ in range(longest_answer(vlm)):
        if not growing.any():
            break
        best = last.argmax(-1)
        mask = torch.cat([mask, growing[:, None].long()], 1)
        recorder.is_image, recorder.counted = np.zeros(len(best), np.bool_), growing.numpy()
        last = _step(vlm, vlm.embed(best.tolist()).transpose(0, 1), mask, cache)
        growing = growing & (best != vlm.spec.eos_token_id)


def _padded(
    embeds: list[torch.Tensor], images: list[slice], on_the_left: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequences f32 [tokens, hidden], and where their image is → f32 [batch, longest, hidden]; its mask; bool [batch,
    longest], what is image."""
    longest = max(len(rows) for rows in embeds)
    batch = torch.zeros(len(embeds), longest, embeds[0].shape[-1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.long)
    is_image = torch.zeros(len(embeds), longest, dtype=torch.bool)
    for i, (rows, image) in enumerate(zip(embeds, images, strict=True)):
        place = slice(longest - len(rows), longest) if on_the_left else slice(len(rows))
        batch[i, place], mask[i, place] = rows, 1
        is_image[i, place][image] = True
    return batch, mask, is_image


def longest_answer(vlm: VLM) -> int:
    """Most tokens of an answer that is generated."""
    size = sum(parameter.numel() for parameter in vlm.language.parameters())
    return LARGE_ANSWER if size >= LARGE else MAX_ANSWER


def _step(vlm: VLM, embeds: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """f32 [batch, new, hidden] → f32 [batch, vocabulary] after the last; ``mask`` [batch, all so far]."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -embeds.shape[1] :]
    output = vlm.language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True
    )
    last: torch.Tensor = output.logits[:, -1]
    return last
