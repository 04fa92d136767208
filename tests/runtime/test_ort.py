"""The five stages of ONNX bundles in ONNX Runtime against the float model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.onnx_bundles import Bundles, open_exact, picture
from tests.prompts import ask, with_image
from tests.runtime.rows import assert_rows_are_those_that_are_asked_for
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import CheckpointError
from vlmexport.processing import image as image_module
from vlmexport.processing.image import PIXELS, ProcessedImage
from vlmexport.processing.prompt import Views
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.halves import OrtHalves
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(short: Checkpoint) -> ReferenceRuntime:
    return ReferenceRuntime(short)


def opened(onnx_bundle: Bundles, name: str) -> Joined:
    return join(OrtHalves(onnx_bundle(name), read_manifest(onnx_bundle(name))))


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_float_stages(name: str, onnx_bundle: Bundles, reference: ReferenceRuntime) -> None:
    """The checkpoint is float16, so float16 weights are its own."""
    runtime = opened(onnx_bundle, name)
    pixels = runtime.pixels(picture(8))
    np.testing.assert_array_equal(pixels.pixel_values, reference.pixels(picture(8)).pixel_values)
    features = reference.features(pixels)
    np.testing.assert_allclose(runtime.features(pixels).rows, features.rows, atol=1e-4)
    tokens = reference.tokens(features)
    np.testing.assert_allclose(runtime.tokens(features), tokens, atol=1e-4)
    prompt = ask(reference, "what is polite?")
    assert ask(runtime, "what is polite?") == prompt
    np.testing.assert_allclose(runtime.logits(prompt, [tokens], 0), reference.logits(prompt, [tokens], 0), atol=1e-3)
    for side in (runtime, reference):
        assert_rows_are_those_that_are_asked_for(side, prompt, tokens)
    got, want = list(runtime.generate(prompt, [tokens], 12)), list(reference.generate(prompt, [tokens], 12))
    assert [token.id for token in got] == [token.id for token in want]
    np.testing.assert_allclose([t.margin for t in got], [t.margin for t in want], atol=1e-3)
    ids = with_image(prompt)
    assert runtime.decode(ids) == reference.decode(ids)
    runtime.close()


def test_chained_tokens_come_from_the_whole_graph(onnx_bundle: Bundles) -> None:
    runtime = opened(onnx_bundle, "int8")
    """They go with the features: whatever was run meanwhile, and whoever copied them."""
    first, second = (runtime.features(runtime.pixels(picture(number))) for number in (9, 11))
    for number, features in ((9, first), (11, replace(second)), (9, replace(first))):
        whole = runtime.seeing._graphs.run("vision_encoder", runtime.pixels(picture(number)).arrays)["image_features"]
        np.testing.assert_array_equal(runtime.tokens(features), whole)
        np.testing.assert_allclose(runtime.tokens(replace(features, tokens=None)), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_views_are_computed_side_by_side(name: str, onnx_bundle: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five views, four and one at a time: each gives what it gives alone, and tokens lie view by view."""
    monkeypatch.setattr(image_module, "VIEWS_AT_ONCE", 4)
    runtime = open_exact(onnx_bundle(name))
    alone = [runtime.pixels(picture(number)) for number in range(5)]
    views = ProcessedImage(
        {PIXELS: np.concatenate([one.pixel_values for one in alone])}, Views(alone[0].views.grids * 5)
    )
    features = runtime.features(views)
    tokens = runtime.tokens(features).reshape(5, -1, 256)
    projected = runtime.tokens(replace(features, tokens=None)).reshape(tokens.shape)
    for number, one in enumerate(alone):
        expected = runtime.features(one)
        np.testing.assert_allclose(features.views[number], expected.views[0], atol=1e-5)
        np.testing.assert_allclose(tokens[number], runtime.tokens(expected), atol=1e-5)
        np.testing.assert_allclose(projected[number], tokens[number], atol=1e-4)
    runtime.close()


def test_int8_stages(onnx_bundle: Bundles, reference: ReferenceRuntime) -> None:
    runtime = open_exact(onnx_bundle("int8"))
    pixels = runtime.pixels(picture(10))
    features = reference.features(pixels)
    for got, want in (
        (runtime.features(pixels).rows, features.rows),
        (runtime.tokens(features), reference.tokens(features)),
    ):
        cosine = (got * want).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(want, axis=-1)
        assert cosine.mean() > 0.999
        assert not np.array_equal(got, want)


def test_decoding_with_fused_attention_is_what_one_pass_gives(onnx_bundle: Bundles) -> None:
    """The cache is a buffer of fixed length: a long prompt, then token by token; twice, as in two questions."""
    runtime = opened(onnx_bundle, "int4")
    tokens = runtime.tokens(runtime.features(runtime.pixels(picture(3))))
    prompt = ask(runtime, "what is polite?")
    for length in (9, 5):
        ids = [token.id for token in runtime.generate(prompt, [tokens], length)]
        assert len(ids) == length
        whole = prompt.answered(ids[:-1])
        assert runtime.logits(whole, [tokens], 0)[0, -length:].argmax(-1).tolist() == ids


def test_a_bundle_for_another_machine_says_so(onnx_bundle: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert opened(onnx_bundle, "int8").notes == ("x86 bundle run with arm64 kernels",)
    assert opened(onnx_bundle, "fp32").notes == ()


def test_a_missing_value_is_named(onnx_bundle: Bundles) -> None:
    manifest = read_manifest(onnx_bundle("fp32"))
    manifest.seeing.outputs = {"features": "nowhere"}
    runtime = join(OrtHalves(onnx_bundle("fp32"), manifest))
    with pytest.raises(CheckpointError, match=r"output \(nowhere\) does not exist"):
        runtime.features(runtime.pixels(picture(0)))
