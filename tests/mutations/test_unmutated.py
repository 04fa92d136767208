"""Right bundles stay green, whatever held-out samples they are asked: 20 sets of 20 questions about three scenes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import pytest

from tests.mutations.conftest import Right, about
from vlmexport.artifact.bundle import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.checkpoint.locate import open_model
from vlmexport.demo.scenes import HELDOUT_SEEDS
from vlmexport.parity.compare import Comparison
from vlmexport.parity.expected import Live
from vlmexport.parity.gates import judge
from vlmexport.parity.weights import compare_weights
from vlmexport.runtime.opening import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime

SETS, SCENES = 20, 3
SEEDS = HELDOUT_SEEDS[100 : 100 + SETS * SCENES]


def asked(seeds: Sequence[int]) -> list[Sample]:
    """Each question once: one that is asked again tells nothing new, and a difference would count twice."""
    return [sample for seed in seeds for sample in about(seed, 7)][:20]


@pytest.mark.slow
def test_int8_is_green_over_20_seeds(right: Right) -> None:
    """int8, because of the right bundles it is the one that is near its gates."""
    bundle, checkpoint = right("int8"), open_model("demo")
    manifest = read_manifest(bundle)
    expected = Live(ReferenceRuntime(checkpoint))
    with closing(open_runtime(bundle, manifest)) as runtime:
        for start in range(0, len(SEEDS), SCENES):
            seeds = SEEDS[start : start + SCENES]
            comparison = Comparison(expected, runtime)
            comparison.run(asked(seeds))
            red = [gate for gate in judge(manifest.recipe.gates, comparison.measured.stages()) if not gate.passed]
            assert not red, seeds
    weights = compare_weights(bundle, manifest, checkpoint)
    assert weights is not None
    assert (weights.faults, weights.not_compared) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "gguf"])
def test_decoding_can_go_on_past_the_end(kind: str, right: Right) -> None:
    """What the times of `vlmexport bench` rest on: the demo ends its answers, random models do not."""
    bundle, (sample,) = right(kind), about(SEEDS[0], 1)
    with closing(open_runtime(bundle)) as runtime:
        prompt = runtime.prompt(sample.question)
        tokens = runtime.tokens(runtime.features(runtime.pixels(sample.image())))
        ended = [token.id for token in runtime.generate(prompt, tokens, 40)]
        assert ended[-1] == runtime.eos_token_id
        assert len(ended) < 40
        on = [token.id for token in runtime.generate(prompt, tokens, 40, ignore_eos=True)]
        assert len(on) == 40
        assert on[: len(ended)] == ended
