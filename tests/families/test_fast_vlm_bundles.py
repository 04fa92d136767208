"""Bundles of a tiny FastVLM in both layouts: every precision and target stage by stage."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("timm", reason="timm is not installed")

from tests.fast_vlm_bundles import BUNDLES, questions
from tests.onnx_bundles import Bundles
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.measures.gates import judge
from vlmexport.measures.stage_result import STAGES
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference.values import Live
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_answers")]


@pytest.mark.parametrize("name", BUNDLES)
def test_five_stages_pass_their_gates(name: str, fast_vlm_bundle: Bundles, fast_vlm_root: Path) -> None:
    bundle = fast_vlm_bundle(name)
    manifest = read_manifest(bundle)
    with closing(open_runtime(bundle, manifest)) as runtime:
        comparison = Comparison(Live(ReferenceRuntime(open_checkpoint(fast_vlm_root / BUNDLES[name][0]))), runtime)
        comparison.run(questions(4))
    stages = comparison.measured.stages()
    gates = judge(manifest.recipe.gates, stages)
    assert {gate.stage for gate in gates} == set(STAGES)
    assert not [stage for stage in stages if stage.error]
    assert all(gate.passed for gate in gates), [gate for gate in gates if not gate.passed]
