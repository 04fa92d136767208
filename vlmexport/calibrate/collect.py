"""Samples → statistics, shard by shard: the float reference runs over a few samples at a time.

Statistics of the shards are added in the order of the samples. So one run, one that was interrupted and continued, and
a run on several machines add the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from vlmexport.calibrate.asked import Asked, ask
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import Statistics
from vlmexport.calibrate.views import ViewCount
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.errors import NotEnoughData
from vlmexport.model import VLM, plugins
from vlmexport.model.decoder_inputs import DecoderInputs, padded, positions
from vlmexport.processing.prompt_builder import CheckpointPrompts

SHARD = 8
"""Samples that go through the decoder together, as far as ``AT_ONCE`` reaches: each of its weights is read, and
converted, once for all of them."""

MAX_ANSWER = 64
"""Longest answer, in tokens, that is generated for a sample without one."""

AT_ONCE = 2**31
"""Bytes that the decoder may hold of sequences beside its weights: fewer go through it together where they are long."""

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
    vlm: VLM, prompts: CheckpointPrompts, samples: Sequence[Sample], advance: Callable[[], None] = lambda: None
) -> Statistics:
    """Statistics of every ``Linear`` and ``Conv2d`` input of the components that the model has, but for those of
    ``always_float``.

    Raises:
        NotEnoughData: no samples.
        CheckpointError: activations that are not finite.
    """
    total = Statistics()
    for shard in shards(samples):
        total += collect_shard(vlm, prompts, shard, advance)
    return total


def collect_shard(
    vlm: VLM, prompts: CheckpointPrompts, samples: Sequence[Sample], advance: Callable[[], None] = lambda: None
) -> Statistics:
    """Statistics of a few samples: images one by one, then, where there is a decoder, all sequences together.

    A sequence is prompt, image and answer, so that the decoder's statistics hold what decoding will see: the sample's
    own answer where it has one, else the model's greedy answer, of at most ``MAX_ANSWER`` or ``LARGE_ANSWER`` tokens. A
    classifier reads prompt and image alone. The head is given the positions alone that decide a token.
    """
    views = ViewCount()
    with Recorder(vlm, always_float(vlm)) as recorder, torch.inference_mode():
        if "language" in vlm.components:
            asked = [ask(vlm, prompts, sample) for sample in samples]
            _decode(vlm, prompts, samples, asked, recorder)
            for one in asked:
                views += one.views
                advance()
        else:
            for sample in samples:
                for picture in sample.alone():
                    views += ViewCount.of(vlm.see(picture.image()).views)
                advance()
    return Statistics(dict(sorted(recorder.layers.items())), tuple(sample.id for sample in samples), views)


def always_float(vlm: VLM) -> set[str]:
    """Paths of the layers that no recipe makes int8, whose statistics nobody reads: depthwise convolutions, and
    what the kind of encoder keeps. Their inputs are the largest maps of a convolutional encoder."""
    kept = plugins.float_layers(vlm.spec.vision)
    return {
        path
        for path, module in vlm.named_modules()
        if (isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1)
        or any(fnmatchcase(path, pattern) for pattern in kept)
    }


@dataclass
class _Sequence:
    """What goes through the decoder: prompt, images and the sample's own answer; tokens of that answer and of the end,
    None where it has none."""

    inputs: DecoderInputs
    answer: int | None


def _decode(
    vlm: VLM, prompts: CheckpointPrompts, samples: Sequence[Sample], asked: Sequence[Asked], recorder: Recorder
) -> None:
    """Run the sequences, as many together as ``AT_ONCE`` holds."""
    sequences = []
    for sample, one in zip(samples, asked, strict=True):
        is_given = vlm.spec.language.generates and sample.answer is not None
        ids = prompts.answer(sample.answer or "") if is_given else []
        ids = ids[: one.room - 1]  # a position each
        sequences.append(_Sequence(one.inputs(vlm, ids), len(ids) if is_given else None))
    for batch in _batches(vlm.spec.language, sequences):
        _run(vlm, batch, recorder)


def _batches(spec: LanguageSpec, sequences: Sequence[_Sequence]) -> Iterator[list[_Sequence]]:
    """Neighbours that take at most ``AT_ONCE`` together, or one that takes more alone."""
    batch: list[_Sequence] = []
    for sequence in sequences:
        if batch and _bytes(spec, [*batch, sequence]) > AT_ONCE:
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def _bytes(spec: LanguageSpec, batch: Sequence[_Sequence]) -> int:
    """Of the float32 values of a batch that are held together: keys and values of all layers, what one layer computes,
    the mask, and the logits."""
    longest = max(len(sequence.inputs) for sequence in batch)
    cache = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim if spec.generates else 0
    position = cache + 4 * spec.intermediate_size + 4 * spec.hidden_size + longest
    return 4 * len(batch) * (longest * position + _read_by_head(batch) * spec.vocab_size)


def _read_by_head(batch: Sequence[_Sequence]) -> int:
    """Last positions that decide a token of an answer that is given, and the one that decides the next."""
    return 1 + max(sequence.answer or 0 for sequence in batch)


def _run(vlm: VLM, sequences: Sequence[_Sequence], recorder: Recorder) -> None:
    """One batch, padded on the left, and on greedily with those that have no answer; padded on the right, and no
    further, where the language model generates none."""
    generates = vlm.spec.language.generates
    batch = padded([sequence.inputs for sequence in sequences], on_the_left=generates)
    mask = batch.mask
    recorder.is_image, recorder.counted = batch.is_image.numpy(), mask.bool().numpy()
    if not generates:
        vlm.language(inputs_embeds=batch.embeds, attention_mask=mask)
        return
    decided = torch.zeros_like(batch.is_image)
    for row, sequence in zip(decided, sequences, strict=True):
        row[len(row) - 1 - (sequence.answer or 0) :] = True
    recorder.decided = decided.numpy()
    cache = DynamicCache()
    last = _step(vlm, batch.embeds, mask, cache, _read_by_head(sequences))
    growing = torch.tensor([sequence.answer is None for sequence in sequences])
    for _ in range(longest_answer(vlm)):
        growing &= mask.sum(1) < vlm.spec.language.max_positions
        if not growing.any():
            break
        best = last.argmax(-1)
        mask = torch.cat([mask, growing[:, None].long()], 1)
        recorder.is_image = np.zeros((len(best), 1), np.bool_)
        recorder.counted = recorder.decided = growing[:, None].numpy()
        last = _step(vlm, vlm.embed(best.tolist()).transpose(0, 1), mask, cache, 1)
        growing = growing & ~torch.isin(best, torch.tensor(vlm.spec.stop_token_ids))


def longest_answer(vlm: VLM) -> int:
    """Most tokens of an answer that is generated."""
    size = sum(parameter.numel() for parameter in vlm.language.parameters())
    return LARGE_ANSWER if size >= LARGE else MAX_ANSWER


def _step(vlm: VLM, embeds: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, read: int) -> torch.Tensor:
    """f32 [batch, new, hidden] → f32 [batch, vocabulary] after the last; ``mask`` [batch, all so far]; ``read``: last
    positions that the head is given."""
    read_at = positions(mask)[:, -embeds.shape[1] :]
    output = vlm.language(
        inputs_embeds=embeds, attention_mask=mask, position_ids=read_at, cache=cache, use_cache=True,
        logits_to_keep=read,
    )  # fmt: skip
    last: torch.Tensor = output.logits[:, -1]
    return last
