"""Float fallback by measurement: the fewest layers that must stay in float for the recipe's gates to hold.

Where all layers in int8 pass, none. Else groups of layers that read one value are ranked by the loss that each causes
alone, visual tokens' NMSE or the answer's KL divergence, and as many of the worst as it takes go back to float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from vlmexport.calibrate import Sample
from vlmexport.calibrate.sensitivity import Sequence as Decoded
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.fallback.simulated import int8_layers
from vlmexport.measures.arrays import F32, ArrayMeasure
from vlmexport.measures.gates import holds
from vlmexport.measures.logits import LogitsMeasure
from vlmexport.model import VLM
from vlmexport.processing.prompt_builder import CheckpointPrompts
from vlmexport.quantize.int8 import Decisions
from vlmexport.recipe import Gates

SAMPLES = 24
"""Calibration samples that are run; the verdict of ``check`` is on others."""

Advance = Callable[[], None]


class Fallback:
    """Callable with a graph's decisions; gives the layers that must stay in float, and why.

    Args:
        open_model: the float model and what makes its prompts; called when something is to be measured.
        advance: called once for every pass over the samples.
    """

    def __init__(
        self,
        open_model: Callable[[], tuple[VLM, CheckpointPrompts]],
        samples: Sequence[Sample],
        gates: Gates,
        advance: Advance = lambda: None,
    ) -> None:
        self._open, self._samples, self._gates = open_model, samples[:SAMPLES], gates
        self._advance = advance
        self._model: tuple[VLM, CheckpointPrompts] | None = None
        self.losses: dict[str, float] = {}
        """Loss that a group causes alone, by its first layer's path; of graphs where some stayed in float."""

    def __call__(self, decisions: Decisions) -> Mapping[str, str]:
        """Layers by path."""
        members = groups(decisions)
        if not members:
            return {}
        stage = LogitsLoss if members[0][0].startswith("language.") else TokensLoss
        vlm, prompts = self._opened()
        measured = stage(vlm, prompts, self._samples)

        def loss(groups: Sequence[Sequence[str]]) -> tuple[float, bool]:
            """With the groups in int8, and whether the gates hold."""
            with int8_layers(vlm, decisions.choices, [path for group in groups for path in group]):
                metrics = measured.metrics()
            self._advance()
            return metrics[stage.loss], holds(self._gates, stage.name, metrics)

        if loss(members)[1]:
            return {}
        alone = {group[0]: loss([group])[0] for group in members}
        self.losses |= alone
        ranked = sorted(members, key=lambda group: -alone[group[0]])
        few, many = 0, len(ranked)  # so many in float fail, and serve
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if loss(ranked[middle:])[1] else (middle, many)
        why = "measured: int8 alone costs {:.2g} " + stage.loss
        return {path: why.format(alone[group[0]]) for group in ranked[:many] for path in group}

    def _opened(self) -> tuple[VLM, CheckpointPrompts]:
        if self._model is None:
            self._model = self._open()
        return self._model


def groups(decisions: Decisions) -> list[list[str]]:
    """Paths of int8 layers; those that read one value together."""
    found = [[member.path for member in group.members if member.path in decisions.choices]
             for group in decisions.groups]  # fmt: skip
    together = {path for group in found for path in group}
    return [group for group in found if group] + [[path] for path in decisions.choices if path not in together]


class TokensLoss:
    """Visual tokens of the samples' images."""

    name, loss = "tokens", "nmse"

    def __init__(self, vlm: VLM, _: CheckpointPrompts, samples: Sequence[Sample]) -> None:
        self._vlm = vlm
        self._images = {one.image_id: one for sample in samples for one in sample.alone()}
        self._expected = list(self._run())

    def _run(self) -> Iterator[F32]:
        for sample in self._images.values():
            with torch.inference_mode():
                tokens = self._vlm.see(sample.image()).tokens.numpy()
            yield tokens

    def metrics(self) -> dict[str, float]:
        """Against the float model."""
        measure = ArrayMeasure()
        for expected, found in zip(self._expected, self._run(), strict=True):
            measure.add(expected, found)
        return measure.metrics()


class LogitsLoss:
    """Logits where the samples' answers are decided, after the float model's visual tokens."""

    name, loss = "logits", "kld"

    def __init__(self, vlm: VLM, prompts: CheckpointPrompts, samples: Sequence[Sample]) -> None:
        self._vlm = vlm
        self._sequences: list[Decoded] = [sequence(vlm, prompts, sample) for sample in samples]
        self._expected = list(self._run())

    def _run(self) -> Iterator[F32]:
        for one in self._sequences:
            with torch.inference_mode():
                logits = self._vlm.logits(one.embeds, one.decided).numpy()
            yield logits

    def metrics(self) -> dict[str, float]:
        """Against the float model."""
        measure = LogitsMeasure()
        for expected, found in zip(self._expected, self._run(), strict=True):
            measure.add(expected, found, [int(token) for token in expected[0].argmax(-1)])
        return measure.metrics()
