"""One pass of the float reference over samples; a hook at every linear layer adds its input to the statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vlmexport.calibrate.samples import Sample
from vlmexport.calibrate.statistics import LayerStatistics, Statistics
from vlmexport.checkpoint import Tokenizer
from vlmexport.errors import NotEnoughData
from vlmexport.model import VLM

_MAX_ANSWER = 64


class _Recorder:
    """Adds what goes into a layer, while ``active``; ``is_image`` tells the positions of the sequence apart."""

    def __init__(self, vlm: VLM) -> None:
        self.layers: dict[str, LayerStatistics] = {}
        self.active = True
        self.is_image: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._counted = LayerStatistics(0)
        self._handles = [
            module.register_forward_pre_hook(self._hook(name))
            for name, module in vlm.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not self.active:
                return
            x = inputs[0].detach().float()
            rows = x.movedim(1, -1).flatten(0, -2) if isinstance(module, nn.Conv2d) else x.flatten(0, -2)
            # Query, key and value read one tensor, and so do gate and up: it is counted once.
            if inputs[0] is not self._last:
                self._last, self._counted = inputs[0], LayerStatistics(rows.shape[-1])
                self._counted.add(rows, self.is_image)
            known = self.layers.get(name)
            self.layers[name] = self._counted if known is None else known + self._counted

        return add

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def collect(
    vlm: VLM, tokenizer: Tokenizer, samples: Iterable[Sample], advance: Callable[[], None] = lambda: None
) -> Statistics:
    """Statistics of every ``Linear`` and ``Conv2d`` input, over prompts with their images and answers.

    The answer is part of the sequence, so that the decoder's statistics hold what decoding will see: the sample's
    own where it has one, else the model's greedy answer.

    Raises:
        NotEnoughData: no samples.
    """
    recorder = _Recorder(vlm)
    seen = []
    try:
        with torch.inference_mode():
            for sample in samples:
                _add(vlm, tokenizer, sample, recorder)
                seen.append(sample.id)
                advance()
    finally:
        recorder.close()
    if not seen:
        raise NotEnoughData("there are no calibration samples", "pass a folder of images or a manifest")
    return Statistics(dict(sorted(recorder.layers.items())), tuple(seen))


def _add(vlm: VLM, tokenizer: Tokenizer, sample: Sample, recorder: _Recorder) -> None:
    tokens = vlm.tokens(vlm.features(vlm.pixels(sample.image())))
    prompt = tokenizer.prompt(vlm.spec.prompt, sample.question)
    embeds = vlm.prompt_embeds(prompt, tokens)
    recorder.active = False
    if sample.answer is not None:
        answer = [*tokenizer.encode(sample.answer, bos=False), vlm.spec.eos_token_id]
    else:
        answer = [token for token, _ in vlm.generate(embeds, _MAX_ANSWER)]
    recorder.active = True
    embeds = torch.cat([embeds, vlm.embed(answer)], 1)
    is_image = torch.zeros(embeds.shape[1], dtype=torch.bool)
    start = len(prompt.before)
    is_image[start : start + tokens.shape[-2]] = True
    recorder.is_image = is_image
    vlm.logits(embeds)
    recorder.is_image = None
