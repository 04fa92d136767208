"""One bundle on two machines' kernels: what each stage gave, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmexport.measures.arrays import EqualMeasure, ShapeDiffersError
from vlmexport.measures.stage_result import STAGES, StageResult

Values = Mapping[str, npt.NDArray[Any]]
"""Stage → its array; of ``answer``, the token ids."""


@dataclass
class KernelDifference:
    """Adds up the differences of stages over images and questions, each stage fed its own predecessor."""

    measures: dict[str, EqualMeasure] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, here: Values, there: Values) -> None:
        """Compare the stages that ran here."""
        for stage, array in here.items():
            if stage not in there:
                self.errors.setdefault(stage, "not run")
                continue
            other, measure = there[stage], self.measures.setdefault(stage, EqualMeasure())
            if stage == "answer":
                measure.count(bool(np.array_equal(array, other)))
                continue
            try:
                measure.add(array, other)
            except ShapeDiffersError as error:
                self.errors.setdefault(stage, str(error))

    def stages(self) -> list[StageResult]:
        """equal (share of values; of ``answer``, share of answers) and max_abs, in the order of the stages."""
        return [
            StageResult(
                stage=stage,
                mode="chained",
                metrics=self.measures.get(stage, EqualMeasure()).metrics(),
                error=self.errors.get(stage),
            )
            for stage in STAGES
            if stage in self.measures or stage in self.errors
        ]
