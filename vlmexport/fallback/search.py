"""Float fallback by measurement: the fewest layers that must stay in float for the recipe's gates to hold.

Where all layers in int8 pass, none. Else groups of layers that read one value are ranked by the loss that each causes
alone, visual tokens' NMSE or the answer's KL divergence, and as many of the worst as it takes go back to float. A large
model is ranked on few of the samples: a hundred groups on all of them would take hours. What is sent back is judged on
all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmexport.calibrate import Sample
from vlmexport.calibrate.sensitivity import Sequence as Decoded
from vlmexport.calibrate.sensitivity import sequence
from vlmexport.console import QUIET, Advance, Console, no_advance
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

RANKING = 2 * 10**14
"""Operations of products that a ranking may take, half an hour of two cores; but on at least ``FEWEST`` samples."""

FEWEST = 2

Input = TypeVar("Input")
Groups = Sequence[Sequence[str]]
Metrics = Callable[[Groups, Advance, int | None], dict[str, float]]
"""Of the stage with some groups in int8, on the first samples, on all where the number is None."""


class Fallback:
    """Callable with a graph's decisions; gives the layers that must stay in float, and why.

    Args:
        open_model: the float model and what makes its prompts; called when something is to be measured.
    """

    def __init__(
        self,
        open_model: Callable[[], tuple[VLM, CheckpointPrompts]],
        samples: Sequence[Sample],
        gates: Gates,
        console: Console = QUIET,
    ) -> None:
        self._open, self._samples, self._gates = open_model, samples[:SAMPLES], gates
        self._console = console
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
        with self._console.progress(f"measuring {stage.name} in float", len(self._samples)) as advance:
            measured = stage(vlm, prompts, self._samples, advance)

        def metrics(groups: Groups, advance: Advance, count: int | None = None) -> dict[str, float]:
            """With the groups in int8, on the first samples."""
            with int8_layers(vlm, decisions.choices, [path for group in groups for path in group]):
                return measured.metrics(advance, count)

        with self._console.progress(f"measuring {stage.name} in int8", measured.count) as advance:
            if holds(self._gates, stage.name, metrics(members, advance)):
                return {}
        return self._fewest(members, measured, metrics)

    def _fewest(self, members: Groups, measured: Loss[Any], metrics: Metrics) -> dict[str, str]:
        """Layers of the groups that must stay in float, the worst first, and why."""
        on = min(measured.count, max(FEWEST, RANKING // (len(members) * measured.operations())))
        self._console.note(f"int8 misses the recipe's gates for {measured.name}: looking for layers to leave in float")
        with self._console.progress(f"ranking {len(members)} groups of layers", len(members) * on) as advance:
            alone = {group[0]: metrics([group], advance, on)[measured.loss] for group in members}
        self.losses |= alone
        ranked = sorted(members, key=lambda group: -alone[group[0]])
        few, many = 0, len(ranked)  # so many in float fail, and serve
        tries = (many - 1).bit_length()
        with self._console.progress("finding the fewest of them", tries * measured.count) as advance:
            while many - few > 1:
                middle = (few + many) // 2
                serves = holds(self._gates, measured.name, metrics(ranked[middle:], advance, None))
                few, many = (few, middle) if serves else (middle, many)
        why = "measured: int8 alone costs {:.2g} " + measured.loss
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


class Loss(ABC, Generic[Input]):
    """What int8 costs at one stage, over inputs that the float model has run.

    Args:
        inputs: one by one, as they are made.
        advance: called once for every input.
    """

    name: ClassVar[str]
    loss: ClassVar[str]
    """The stage, and the metric that ranks layers."""

    def __init__(self, vlm: VLM, inputs: Iterable[Input], advance: Advance) -> None:
        self._vlm = vlm
        self._inputs: list[Input] = []
        self._expected: list[F32] = []
        for one in inputs:
            self._inputs.append(one)
            self._expected.append(self._run(one))
            advance()

    @abstractmethod
    def _outputs(self, one: Input) -> torch.Tensor:
        """The stage of one input."""

    @abstractmethod
    def _compare(self, pairs: Iterable[tuple[F32, F32]]) -> dict[str, float]:
        """What is expected, and what was found."""

    @property
    def count(self) -> int:
        """Inputs there are."""
        return len(self._inputs)

    def metrics(self, advance: Advance = no_advance, count: int | None = None) -> dict[str, float]:
        """Of the first inputs, of all where it is None, against the float model."""
        return self._compare(self._pairs(self.count if count is None else count, advance))

    def operations(self) -> int:
        """Of the products that the first input takes."""
        with FlopCounterMode(display=False) as counter:
            self._run(self._inputs[0])
        return int(counter.get_total_flops())

    def _pairs(self, count: int, advance: Advance) -> Iterator[tuple[F32, F32]]:
        for one, expected in zip(self._inputs[:count], self._expected, strict=False):
            yield expected, self._run(one)
            advance()

    def _run(self, one: Input) -> F32:
        with torch.inference_mode():
            found: F32 = self._outputs(one).numpy()
        return found


class TokensLoss(Loss[Sample]):
    """Visual tokens of the samples' images."""

    name, loss = "tokens", "nmse"

    def __init__(
        self, vlm: VLM, _: CheckpointPrompts, samples: Sequence[Sample], advance: Advance = no_advance
    ) -> None:
        images = {one.image_id: one for sample in samples for one in sample.alone()}
        super().__init__(vlm, images.values(), advance)

    def _outputs(self, one: Sample) -> torch.Tensor:
        return self._vlm.see(one.image()).tokens

    def _compare(self, pairs: Iterable[tuple[F32, F32]]) -> dict[str, float]:
        measure = ArrayMeasure()
        for expected, found in pairs:
            measure.add(expected, found)
        return measure.metrics()


class LogitsLoss(Loss[Decoded]):
    """Logits where the samples' answers are decided, after the float model's visual tokens."""

    name, loss = "logits", "kld"

    def __init__(
        self, vlm: VLM, prompts: CheckpointPrompts, samples: Sequence[Sample], advance: Advance = no_advance
    ) -> None:
        super().__init__(vlm, (sequence(vlm, prompts, sample) for sample in samples), advance)

    def _outputs(self, one: Decoded) -> torch.Tensor:
        return self._vlm.logits(one.inputs, one.decided)

    def _compare(self, pairs: Iterable[tuple[F32, F32]]) -> dict[str, float]:
        measure = LogitsMeasure()
        for expected, found in pairs:
            measure.add(expected, found, [int(token) for token in expected[0].argmax(-1)])
        return measure.metrics()
