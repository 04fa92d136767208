"""Right bundles stay green, whatever held-out samples they are asked: 20 sets of 20 questions about three scenes.

``make test`` asks int8 on the first sets, ``make rotating`` all formats on those that its seed chooses, and
``make thorough`` all on all sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import pytest

from recipes.tiles import scenes as tiles
from tests.mutations.conftest import FORMATS, TILES, Right, about, about_tiles
from tests.prompts import ask
from tests.rotation import rotating
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.demo.scenes import HELDOUT_SEEDS
from vlmexport.measures.gates import judge
from vlmexport.measures.stage_result import STAGES
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.layers.int8_weights import compare_weights
from vlmexport.parity.reference.values import ImageValues, Live, QuestionValues
from vlmexport.processing.images import read_image
from vlmexport.processing.prompt import Seen
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.runtime.stages import F32
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.source.locate import open_model

SETS, SCENES = 20, 3
PART = 5


def seeds_of(heldout: Sequence[int]) -> list[Sequence[int]]:
    return [heldout[100 + SCENES * index :][:SCENES] for index in range(SETS)]


SEEDS, TILES_SEEDS = seeds_of(HELDOUT_SEEDS), seeds_of(tiles.SEEDS["heldout"])


def asked(seeds: Sequence[int]) -> list[Sample]:
    """Each question once: one that is asked again tells nothing new, and a difference would count twice."""
    return [sample for seed in seeds for sample in about(seed, 7)][:20]


class Remembered(Live):
    """The float model, which says the same about a sample each time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(ReferenceRuntime(checkpoint))
        self._images: dict[str, ImageValues] = {}
        self._questions: dict[str, QuestionValues] = {}

    def image(self, sample: Sample) -> ImageValues:
        if sample.image_id not in self._images:
            self._images[sample.image_id] = super().image(sample)
        return self._images[sample.image_id]

    def question(self, sample: Sample, seen: Sequence[Seen[F32]]) -> QuestionValues:
        if sample.id not in self._questions:
            self._questions[sample.id] = super().question(sample, seen)
        return self._questions[sample.id]


@pytest.fixture(scope="module")
def expected() -> Callable[[str], Remembered]:
    return cache(lambda model: Remembered(open_model(model)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", rotating([*FORMATS, *TILES], ["int8"], len(FORMATS | TILES)))
def test_right_bundles_are_green(kind: str, right: Right, expected: Callable[[str], Remembered]) -> None:
    """int8 is the one near its gates, so ``make test`` asks it alone."""
    bundle = right(kind)
    manifest = read_manifest(bundle)
    sets, ask_about = (TILES_SEEDS, about_tiles) if kind in TILES else (SEEDS, asked)
    with closing(open_runtime(bundle, manifest)) as runtime:
        for seeds in rotating(sets, sets[:PART], PART):
            comparison = Comparison(expected(manifest.source.path), runtime)
            comparison.run(ask_about(seeds))
            gates = judge(manifest.recipe.gates, comparison.measured.stages())
            assert {gate.stage for gate in gates} == set(STAGES)
            assert all(gate.passed for gate in gates), (kind, seeds, gates)
    weights = compare_weights(bundle, manifest, open_model(manifest.source.path))
    if kind == "int8":
        assert weights is not None
        assert (weights.faults, weights.not_compared) == ([], [])


PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel", "horse",
    "ihc", "moon", "motorcycle_left", "motorcycle_right", "page", "text",
)  # fmt: skip


@pytest.mark.slow
def test_an_int8_bundle_is_green_on_photographs(right: Right) -> None:
    """The demo was trained on scenes: it is unsure of what it says about these, and says it at length, so that answers
    part at near-ties."""
    folder = Path(pytest.importorskip("skimage", reason="scikit-image is not installed").__file__).parent / "data"
    samples = [
        Sample(name, name, "Describe the image.", partial(read_image, folder / f"{name}.png")) for name in PHOTOGRAPHS
    ]
    bundle = right("int8")
    manifest = read_manifest(bundle)
    with closing(open_runtime(bundle, manifest)) as runtime:
        comparison = Comparison(Live(ReferenceRuntime(open_model("demo"))), runtime)
        comparison.run(samples)
    gates = judge(manifest.recipe.gates, comparison.measured.stages())
    assert all(gate.passed for gate in gates), [gate for gate in gates if not gate.passed]
    assert len(comparison.measured.answers["chained"]) == len(samples)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "gguf"])
def test_decoding_can_go_on_past_the_end(kind: str, right: Right) -> None:
    """What the times of `vlmexport bench` rest on: the demo ends its answers, random models do not."""
    bundle, (sample,) = right(kind), about(SEEDS[0][0], 1)
    with closing(open_runtime(bundle)) as runtime:
        prompt = ask(runtime, sample.question)
        tokens = runtime.tokens(runtime.features(runtime.pixels(sample.image())))
        ended = [token.id for token in runtime.generate(prompt, [tokens], 40)]
        assert ended[-1] in runtime.stop_token_ids
        assert len(ended) < 40
        on = [token.id for token in runtime.generate(prompt, [tokens], 40, ignore_eos=True)]
        assert len(on) == 40
        assert on[: len(ended)] == ended
