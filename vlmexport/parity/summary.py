"""What manifest and card keep of a result."""

from __future__ import annotations

from collections.abc import Iterable

from vlmexport.artifact.bundle.summary import (
    CoreSummary,
    Gate,
    Measures,
    ParitySummary,
    StockSummary,
    ViewsSummary,
)
from vlmexport.measures.stage_result import StageResult
from vlmexport.parity.result import CoreResult, ParityResult, StockResult, ViewsResult
from vlmexport.runtime.int8_kernels import Int8Kernels


def summary(result: ParityResult) -> ParitySummary:
    """A result in short; stages as they are chained."""
    return ParitySummary(
        passed=result.passed,
        broken_stage=result.broken_stage,
        samples=result.samples,
        runtime=result.runtime,
        kernels=_kernels(result.kernels),
        notes=result.notes,
        gates=[Gate(**gate.model_dump()) for gate in result.gates],
        stages=_measures(stage for stage in result.stages if stage.mode == "chained"),
        stock=_stock(result.stock) if result.stock else None,
        cores=[_core(core) for core in result.cores],
        views=views(result.views) if result.views else None,
    )


def views(found: ViewsResult) -> ViewsSummary:
    """What a budget of views costs, in short."""
    error = next((stage.error for stage in found.stages if stage.error), None)
    return ViewsSummary(
        most=found.most, without=found.without, samples=found.samples, stages=_measures(found.stages), error=error
    )  # fmt: skip


def _core(core: CoreResult) -> CoreSummary:
    return CoreSummary(
        core=core.core,
        runtime=core.runtime,
        kernels=_kernels(core.kernels),
        passed=core.passed,
        broken_stage=core.broken_stage,
        stages=_measures(core.stages),
        beside=_measures(core.beside),
    )


def _stock(stock: StockResult) -> StockSummary:
    return StockSummary(
        passed=stock.passed,
        broken_stage=stock.broken_stage,
        samples=stock.samples,
        stages=_measures(stock.stages),
    )


def _measures(stages: Iterable[StageResult]) -> Measures:
    return {stage.stage: stage.metrics for stage in stages}


def _kernels(kernels: Int8Kernels | None) -> str | None:
    return str(kernels) if kernels else None
