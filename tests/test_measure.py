"""One step before anything is written: what a recipe needs of the float model, and nothing that it does not need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.onnx_bundles import recipe
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.calibrate import Statistics
from vlmexport.measure import NOTHING, measure
from vlmexport.recipe import Calibration
from vlmexport.source.checkpoint import Checkpoint


def test_a_float_recipe_measures_nothing(short: Checkpoint, short_statistics: Statistics, tmp_path: Path) -> None:
    assert measure(short, recipe("fp32"), tmp_path, statistics=short_statistics) == NOTHING
    assert not list(tmp_path.iterdir())


def test_gptq_measures_hessians(short: Checkpoint, tmp_path: Path) -> None:
    chosen = recipe("fp32", decoder="int4", rounding="gptq")
    found = measure(short, chosen.model_copy(update={"calibration": Calibration(samples=1)}), tmp_path)
    assert found.hessians is not None
    assert found.hessians.of("language.model.layers.0.mlp.down_proj") is not None
    assert found.statistics is None


@pytest.mark.slow
def test_int8_is_decided_for_every_part(short: Checkpoint, short_statistics: Statistics, tmp_path: Path) -> None:
    """About the very graphs that are written, and before they are."""
    chosen = recipe("int8", fallback="predicted")
    graphs = FloatGraphs(short, chosen, tmp_path)
    int8 = measure(short, chosen, tmp_path, graphs.model, statistics=short_statistics).int8
    assert int8 is not None
    assert set(int8.decisions) == {"vision", "projector", "language"}
    assert all(decisions.choices for decisions in int8.decisions.values())
    before = len(list(graphs.model("language").graph))
    int8.apply(graphs.model("language"), int8.decisions["language"])
    assert len(list(graphs.model("language").graph)) > before
