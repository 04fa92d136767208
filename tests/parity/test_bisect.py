"""Which layer is called the first: a jump is a fault, slow growth is rounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command import vlmexport
from tests.onnx_bundles import Bundles, sample
from tests.report.results import result
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.console import QUIET
from vlmexport.errors import UsageError
from vlmexport.parity import check
from vlmexport.parity.layers.bisect import bisect, first_to_diverge, worst
from vlmexport.parity.result import (
    Answer,
    BisectResult,
    LayerDifference,
    LayerFault,
    LayerLoss,
    WeightsResult,
)
from vlmexport.recipe import Gates
from vlmexport.report.places import costs, places
from vlmexport.source.checkpoint import Checkpoint

UP = "language.model.layers.0.mlp.up_proj"
"""Which the scales of down_proj are folded into: not compared, but ranked."""

FLOOR = dict.fromkeys(("features", "tokens", "logits"), 1e-11)


def layers(*nmse: float | None, stage: str = "features") -> list[LayerDifference]:
    return [LayerDifference(layer=f"vision.{i}", stage=stage, nmse=value) for i, value in enumerate(nmse)]


@pytest.mark.parametrize(
    ("nmse", "expected"),
    [
        ((1e-13, 2e-13, 5e-12), None),
        ((1e-13, 5e-12, 4e-10, 3e-8), None),  # grows, a hundredfold at most
        ((1e-13, 2e-13, 3e-11), 2),
        ((3e-11, 1e-13), 0),
        ((1e-13, None, 1e-13), 1),
    ],
)
def test_the_first(nmse: tuple[float | None, ...], expected: int | None) -> None:
    assert first_to_diverge(layers(*nmse), FLOOR) == ({} if expected is None else {"features": f"vision.{expected}"})


def test_every_stage_has_its_own() -> None:
    found = [*layers(1e-13, 0.5), *layers(1e-13, 2e-13, stage="tokens"), *layers(1e-3, stage="logits")]
    assert first_to_diverge(found, FLOOR) == {"features": "vision.1", "logits": "vision.0"}


def test_the_worst_sample() -> None:
    samples = [sample(seed) for seed in range(3)]
    answers = [
        Answer(sample=str(i), question="", expected=[], reference="", bundle="", equal=True, kld=kld)
        for i, kld in enumerate([0.1, 0.3, None])
    ]
    assert worst(samples, answers).id == "1"
    assert worst(samples, []).id == "0"


def test_in_words() -> None:
    found = BisectResult(
        sample="s",
        layers=[*layers(1e-13, 0.5), LayerDifference(layer="projector", stage="tokens", nmse=None, note="shape [3]")],
        first={"features": "vision.1", "tokens": "projector"},
        losses=[LayerLoss(layer="vision.0", stage="features", metric="nmse", loss=0.25)],
    )
    fault = LayerFault(layer="vision.0", stage="features", what="2 of 8 output channels")
    weights = WeightsResult(layers={"features": 2}, not_compared=[], faults=[fault])
    made = result(False, bisect=found, weights=weights)
    assert places(made, "features") == (
        "vision.0: 2 of 8 output channels",
        "the first layer that diverges is vision.1 (NMSE 0.5), behind vision.0 (NMSE 1.00e-13)",
    )
    assert places(made, "tokens") == (
        "the first layer that diverges is what follows the layers of projector (shape [3])",
    )
    assert places(made, "logits") == ()
    assert costs(found) == ["int8 layers that cost most nmse of the visual tokens, each alone: vision.0 (0.25)"]


@pytest.mark.slow
def test_a_failure_leads_to_bisect(onnx_bundle: Bundles, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(onnx_bundle("int8"), tmp_path / "int8"))
    manifest = read_manifest(bundle)
    hint = f"next: vlmexport check {bundle} --bisect names the layer"
    for gates, is_led in ((Gates(features_cosine=1.5), True), (Gates(pixels_max_abs=-1.0), False)):
        recipe = manifest.recipe.model_copy(update={"gates": gates})
        write_manifest(bundle, manifest.model_copy(update={"recipe": recipe}))
        done = vlmexport("check", bundle, "--samples", "20")
        assert done.returncode == 1
        assert (hint in done.stderr) == is_led, "no layer makes pixels"


@pytest.mark.slow
def test_a_right_int8_bundle(onnx_bundle: Bundles, short: Checkpoint) -> None:
    bundle = onnx_bundle("int8")
    found = bisect(bundle, read_manifest(bundle), short, sample(0), QUIET)
    assert found.first == {}
    ranked = [loss.layer for loss in found.losses]
    assert len(ranked) == len(set(ranked))
    assert set(ranked) <= {layer.layer for layer in found.layers} | {UP}
    for metric in ("nmse", "kld"):
        losses = [loss.loss for loss in found.losses if loss.metric == metric]
        assert losses == sorted(losses, reverse=True)
        assert 0 < losses[0] < 0.1


@pytest.mark.slow
def test_it_needs_the_float_model(onnx_bundle: Bundles) -> None:
    with pytest.raises(UsageError, match="--bisect runs the float model"):
        check(onnx_bundle("int8"), samples=20, replay=Path("x"), bisect=True)
