"""Hybrids: what no mmproj can hold runs with ONNX vision and a GGUF decoder, through the same five stages."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.command import vlmexport
from tests.onnx_bundles import picture, sample
from tests.prompts import ask
from vlmexport.artifact.bundle.contents import verify
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.flags import vision_flags
from vlmexport.parity import check
from vlmexport.pipeline import export
from vlmexport.plan import plan
from vlmexport.recipe import Recipe, resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow
QUESTION = "What's left of the\nchat? Ü"


def hybrid(base: str, vision: str) -> Recipe:
    return resolve(base, vision_flags(vision, None, base, base), {})


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that libmtmd cannot hold: 36 visual tokens of a linear projector."""
    return write_checkpoint(tmp_path_factory.mktemp("hybrid") / "linear", tiny_spec("linear", 84))


@pytest.fixture(scope="module")
def bundle(linear: Path) -> Path:
    return export(str(linear), hybrid("gguf-f32", "onnx-fp32"), linear.parent / "float")


def questions() -> list[Sample]:
    """Twenty, about four pictures that are square: padding leaves them alone."""
    seeds = [(number, number % 4) for number in range(20)]
    return [
        Sample(f"{n}", f"{seed}", f"what is {n}?", lambda seed=seed: picture(seed, (84, 84)), answer="a chat")
        for n, seed in seeds
    ]


def test_files(bundle: Path, linear: Path) -> None:
    manifest = read_manifest(bundle)
    verify(bundle, manifest)
    assert manifest.kind == "hybrid"
    assert {file.path: file.role for file in manifest.files} == {
        "components/projector.onnx": "projector", "linear-F32.gguf": "language",
        "onnx/vision_encoder.onnx": "vision_encoder", "preprocessor_config.json": None,
    }  # fmt: skip
    assert json.loads((bundle / "preprocessor_config.json").read_text())["image_size"] == 84
    assert "go into llama.cpp as embeddings" in (bundle / "README.md").read_text()
    planned = plan(open_checkpoint(linear), [hybrid("gguf-f32", "onnx-fp32")])[0]
    assert planned.bytes == pytest.approx(sum(file.bytes for file in manifest.files), rel=0.02)


def test_the_five_stages(bundle: Path, linear: Path) -> None:
    reference, image = ReferenceRuntime(open_checkpoint(linear)), picture(7)
    with closing(open_runtime(bundle)) as runtime:
        assert "onnxruntime" in runtime.name
        assert "llama-cpp-python" in runtime.name
        pixels = runtime.pixels(image)
        assert np.array_equal(pixels.pixel_values, reference.pixels(image).pixel_values)
        features = runtime.features(pixels)
        np.testing.assert_allclose(features.rows, reference.features(pixels).rows, atol=1e-4)
        tokens = runtime.tokens(features)
        assert tokens.shape == (36, 256)
        np.testing.assert_allclose(tokens, reference.tokens(features), atol=1e-4)
        prompt = ask(runtime, QUESTION, 36)
        assert prompt == ask(reference, QUESTION, 36)
        np.testing.assert_allclose(
            runtime.logits(prompt, [tokens], 0), reference.logits(prompt, [tokens], 0), atol=1e-3
        )
        ours = [token.id for token in runtime.generate(prompt, [tokens], 8)]
        assert ours == [token.id for token in reference.generate(prompt, [tokens], 8)]
        assert runtime.decode(ours) == reference.decode(ours)


@pytest.mark.usefixtures("short_answers")
def test_check_and_run(bundle: Path, linear: Path, tmp_path: Path) -> None:
    result = check(bundle, samples=questions(), strict_stock=True)
    assert result.passed, [gate for gate in result.gates if not gate.passed]
    assert result.kind == "hybrid"
    assert result.kernels is None, "nothing in it is int8"
    assert result.stock is None
    picture(3).save(tmp_path / "image.png")
    arguments = ("what is it?", "-i", tmp_path / "image.png", "--max-new-tokens", "5", "--json")
    answers = [json.loads(vlmexport("run", model, *arguments).stdout)["answer"].strip() for model in (bundle, linear)]
    assert answers[0] == answers[1]
    shown = vlmexport("inspect", bundle, "--json")
    assert "libmtmd" not in json.loads(shown.stdout)


def test_int8_and_an_importance_matrix_from_one_calibration(linear: Path, tmp_path: Path) -> None:
    options = ("--bits", "4", "--vision", "onnx", "--samples", "8")
    done = vlmexport("gguf", linear, *options, "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "linear-gguf-q4_k_m-onnx-x86")
    assert {"onnx/vision_encoder_int8.onnx", "imatrix.gguf", "linear-Q4_K_M.gguf"} <= {f.path for f in manifest.files}
    assert manifest.calibration is not None
    assert len(manifest.calibration.samples) == 8
    assert (manifest.reports["vision_encoder"].int8_share or 0) > 0.5
    with closing(open_runtime(tmp_path / "linear-gguf-q4_k_m-onnx-x86")) as runtime:
        tokens = runtime.tokens(runtime.features(runtime.pixels(sample(1).image())))
        assert next(runtime.generate(ask(runtime, "A?", 36), [tokens], 1)).margin >= 0
