"""Right bundles stay green, whatever held-out samples they are asked: 20 sets of 20."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.mutations.conftest import Right, about
from vlmexport.artifact.bundle import read_manifest
from vlmexport.checkpoint.locate import open_model
from vlmexport.demo.scenes import HELDOUT_SEEDS
from vlmexport.parity.compare import Comparison
from vlmexport.parity.expected import Live
from vlmexport.parity.gates import judge
from vlmexport.parity.weights import compare_weights
from vlmexport.runtime.opening import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime

SEEDS = HELDOUT_SEEDS[100:120]


@pytest.mark.slow
def test_int8_is_green_over_20_seeds(right: Right) -> None:
    """int8, because of the right bundles it is the one that is near its gates."""
    bundle, checkpoint = right("int8"), open_model("demo")
    manifest = read_manifest(bundle)
    expected = Live(ReferenceRuntime(checkpoint))
    with closing(open_runtime(bundle, manifest)) as runtime:
        for seed in SEEDS:
            comparison = Comparison(expected, runtime)
            comparison.run(about(seed, 20))
            red = [gate for gate in judge(manifest.recipe.gates, comparison.measured.stages()) if not gate.passed]
            assert not red, seed
    weights = compare_weights(bundle, manifest, checkpoint)
    assert weights is not None
    assert (weights.faults, weights.not_compared) == ([], [])
