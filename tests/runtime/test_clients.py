"""Unmodified clients load a bundle and answer as ``Joined`` does: transformers.js under Node, onnxruntime-genai."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.onnx_bundles import Bundles, picture
from tests.prompts import ask, with_image
from tests.transformers_js import ask_node
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.runtime import Token
from vlmexport.runtime.joined import Joined, join
from vlmexport.runtime.ort.halves import OrtHalves

pytestmark = pytest.mark.slow

QUESTION = "what is polite?"
COUNT = 8
PRECISIONS = ("fp32", "fp16", "int8", "int4")


TIE = 0.05
"""Margin below which another release of ONNX Runtime may decide otherwise on a quantized graph with random weights."""


def greedy(bundle: Path) -> tuple[Joined, list[Token]]:
    """Our own answer about a picture that no client has to resize."""
    runtime = join(OrtHalves(bundle, read_manifest(bundle)))
    tokens = runtime.tokens(runtime.features(runtime.pixels(picture(5, (336, 336)))))
    return runtime, list(runtime.generate(ask(runtime, QUESTION), [tokens], COUNT))


def assert_same(got: list[int], expected: list[Token], precision: str) -> None:
    """Token by token; a quantized answer may part at a near tie."""
    assert len(got) == len(expected)
    for own, token in zip(got, expected, strict=True):
        if precision != "fp32" and own != token.id and token.margin < TIE:
            return
        assert own == token.id, (got, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_genai(precision: str, onnx_bundle: Bundles) -> None:
    genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    bundle = onnx_bundle(precision)
    runtime, expected = greedy(bundle)
    prompt, pixels = ask(runtime, QUESTION), runtime.pixels(picture(5, (336, 336))).pixel_values
    image = read_manifest(bundle).decoding.image_token_id
    model = genai.Model(str(bundle))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=512)
    generator = genai.Generator(model, settings)
    inputs = genai.NamedTensors()
    inputs["input_ids"] = np.array([with_image(prompt, *[image] * 144)], np.int32)
    inputs["pixel_values"] = pixels
    inputs["num_image_tokens"] = np.array([144], np.int64)
    generator.set_inputs(inputs)
    got: list[int] = []
    while len(got) < COUNT and not generator.is_done():
        generator.generate_next_token()
        got.append(int(generator.get_next_tokens()[0]))
    assert_same(got, expected, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_transformers_js(precision: str, onnx_bundle: Bundles, transformers_js: Path, tmp_path: Path) -> None:
    bundle = onnx_bundle(precision)
    runtime, expected = greedy(bundle)
    picture(5, (336, 336)).save(tmp_path / "picture.png")
    (found,) = ask_node(transformers_js, bundle, [(tmp_path / "picture.png", QUESTION)], COUNT)
    prompt = ask(runtime, QUESTION)
    assert found["text"] == prompt.text
    assert found["input_ids"] == with_image(prompt, *[read_manifest(bundle).decoding.image_token_id] * 144)
    expected_pixels = runtime.pixels(picture(5, (336, 336))).pixel_values.ravel()[:12]
    np.testing.assert_allclose(found["pixels"], expected_pixels, atol=1e-4)
    assert_same(found["tokens"], expected, precision)
