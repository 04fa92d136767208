"""What clients make of pictures by a bundle's files, against the float model's pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.checkpoints import tiny_spec
from tests.onnx_bundles import Bundles, picture, sample
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx import client_files
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError, MissingDependency, UsageError, VlmExportError
from vlmexport.measures.gates import broken_stage, judge
from vlmexport.parity.compare.clients import SIZES, Client, Transformers, client_gates, open_clients
from vlmexport.parity.compare.evaluate import run_samples
from vlmexport.parity.compare.node import FOLDER, TransformersJs
from vlmexport.processing.image import pixel_values
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import Checkpoint
from vlmexport.workers.deadline import VARIABLE

LEVEL = 1 / 255 / 0.26130258
"""One of 255, of the channel with the smallest deviation."""

Aspect = Literal["pad", "crop"]


def spec_of(aspect: Aspect) -> ImageProcessorSpec:
    return ImageProcessorSpec.square(336, aspect == "pad")


def write(folder: Path, aspect: Aspect) -> Path:
    """The documents of a bundle that make its pixels."""
    spec = replace(tiny_spec("ldpnetv2"), image_processor=spec_of(aspect))
    layout = client_files.Layout(spec, 1000, 144, {})
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(client_files.preprocessor(spec)))
    (folder / "processor_config.json").write_text(json.dumps(client_files.processor(layout)))
    return folder


@pytest.fixture(scope="module", params=["pad", "crop"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageProcessorSpec, Path]:
    """An image processor, and the folder that tells clients of it."""
    return spec_of(request.param), write(tmp_path_factory.mktemp("clients") / "bundle", request.param)


@pytest.fixture(scope="module")
def pillow(told: tuple[ImageProcessorSpec, Path]) -> Transformers:
    return Transformers(told[1], "pil")


@pytest.fixture(scope="module")
def torchvision(told: tuple[ImageProcessorSpec, Path]) -> Transformers:
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    return Transformers(told[1], "torchvision")


def apart(client: Client, image: Image.Image, spec: ImageProcessorSpec) -> float:
    """Largest difference of a pixel from the float model's."""
    expected = np.asarray(pixel_values(image, spec))
    found = client.pixels(image)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


sizes = st.tuples(st.integers(1, 500), st.integers(1, 500))


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_every_listed_size(
    size: tuple[int, int], pillow: Transformers, torchvision: Transformers, told: tuple[ImageProcessorSpec, Path]
) -> None:
    assert apart(pillow, picture(0, size), told[0]) < 1e-5
    assert apart(torchvision, picture(0, size), told[0]) < 3 * LEVEL


@settings(max_examples=25, deadline=None)
@given(size=sizes, seed=st.integers(0, 99))
def test_any_size(
    size: tuple[int, int],
    seed: int,
    pillow: Transformers,
    torchvision: Transformers,
    told: tuple[ImageProcessorSpec, Path],
) -> None:
    if told[0].do_center_crop and max(size) > 8 * min(size):
        size = size[0], size[0]  # the short side of a strip becomes 336 and the long one thousands
    assert apart(pillow, picture(seed, size), told[0]) < 1e-5
    assert apart(torchvision, picture(seed, size), told[0]) < 3 * LEVEL


def test_a_file_that_transformers_cannot_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", "pad")
    document = json.loads((folder / "processor_config.json").read_text())
    document["image_processor"]["image_processor_type"] = "VLMImageProcessor"
    (folder / "processor_config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="transformers cannot read the image processor"):
        Transformers(folder, "pil").pixels(picture(0))
    document["image_processor"] |= {"image_processor_type": "LlavaImageProcessor", "image_mean": [0.5] * 7}
    (folder / "processor_config.json").write_text(json.dumps(document))
    with pytest.raises(VlmExportError, match="fails on a picture of 300x220"):
        Transformers(folder, "pil").pixels(picture(0))


@pytest.mark.slow
def test_a_check_runs_them(onnx_bundle: Bundles, short: Checkpoint) -> None:
    bundle = onnx_bundle("fp32")
    stages = run_samples(bundle, short, [sample(0)]).measured.stages()
    (pixels,) = (stage for stage in stages if stage.stage == "pixels")
    assert pixels.metrics["max_abs"] < 1e-5
    assert pixels.metrics["pil_max_abs"] < 1e-5
    if "torchvision_max_abs" in pixels.metrics:
        assert 1e-5 < pixels.metrics["torchvision_max_abs"] < 3 * LEVEL, "pictures of other sizes are among them"
        (gate,) = client_gates(stages, short.spec.image_processor)
        assert gate.passed
        pixels.metrics["torchvision_max_abs"] = 3 * LEVEL * (1 + 1e-5)  # three levels in float32
        (gate,) = client_gates(stages, short.spec.image_processor)
        assert gate.passed
        pixels.metrics["torchvision_max_abs"] = 4 * LEVEL
        (gate,) = client_gates(stages, short.spec.image_processor)
        assert not gate.passed


def crop(document: dict[str, Any]) -> None:
    document |= {"do_pad": False, "do_center_crop": True, "size": {"shortest_edge": 336}}


def other_mean(document: dict[str, Any]) -> None:
    document["image_mean"] = [0.5, 0.5, 0.5]


def other_resize(document: dict[str, Any]) -> None:
    document["resample"] = 2


@pytest.mark.slow
@pytest.mark.parametrize("change", [crop, other_mean, other_resize])
def test_a_file_that_misleads_a_client_is_red_at_pixels(
    change: Any, onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path
) -> None:
    """Our own function reads another file, and is right."""
    bundle = Path(shutil.copytree(onnx_bundle("fp32"), tmp_path / "bundle"))
    path = bundle / "processor_config.json"
    document = json.loads(path.read_text())
    change(document["image_processor"])
    path.write_text(json.dumps(document))
    stages = run_samples(bundle, short, [sample(0)]).measured.stages()
    gates = judge(resolve("onnx-fp32", environ={}).gates, stages)
    assert broken_stage(gates) == "pixels"
    assert all(gate.passed for gate in gates if gate.mode == "local")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, transformers_js: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    monkeypatch.setenv(FOLDER, str(transformers_js))


@pytest.fixture
def javascript(node: None, told: tuple[ImageProcessorSpec, Path]) -> Iterator[TransformersJs]:
    with closing(TransformersJs(told[1])) as client:
        yield client


@pytest.mark.slow
def test_transformers_js(javascript: TransformersJs, told: tuple[ImageProcessorSpec, Path]) -> None:
    """It has the right size, place and colours; how it interpolates is its own."""
    spec = told[0]
    assert apart(javascript, picture(0, (336, 336)), spec) < 1e-4
    for size in ((640, 360), (360, 640), (337, 335)):
        expected, found = np.asarray(pixel_values(picture(0, size), spec)), javascript.pixels(picture(0, size))
        assert np.square(found - expected).mean() / np.square(expected).mean() < 0.01, size


@pytest.mark.slow
def test_a_picture_that_transformers_js_cannot_resize_is_named(node: None, tmp_path: Path) -> None:
    """A strip has a side of less than a pixel where it keeps its ratio; the next picture is made."""
    with closing(TransformersJs(write(tmp_path / "bundle", "pad"))) as client:
        with pytest.raises(VlmExportError, match=r"a picture of 1x4000 \(.*width.*\): leave out such pictures"):
            client.pixels(picture(0, (1, 4000)))
        assert client.pixels(picture(0, (337, 335))).shape == (1, 3, 336, 336)


@pytest.mark.slow
def test_transformers_js_is_measured_where_it_is_asked_for(node: None, onnx_bundle: Bundles, short: Checkpoint) -> None:
    stages = run_samples(onnx_bundle("fp32"), short, [sample(0)], client="node").measured.stages()
    (pixels,) = (stage for stage in stages if stage.stage == "pixels")
    assert pixels.metrics["transformers_js_max_abs"] > pixels.metrics["max_abs"]
    assert not any("transformers_js" in gate.metric for gate in client_gates(stages, short.spec.image_processor))


@pytest.mark.slow
def test_a_client_that_cannot_run(
    onnx_bundle: Bundles, node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(TransformersJs(tmp_path)) as client:
        for _ in range(2):  # it dies at the first
            with pytest.raises(VlmExportError, match=r"transformers\.js cannot"):
                client.pixels(picture(0))
    manifest = read_manifest(onnx_bundle("fp32"))
    other = manifest.seeing.model_copy(update={"engine": "llama.cpp"})
    with pytest.raises(UsageError, match="--client node does not run a"):
        open_clients(tmp_path, manifest.model_copy(update={"seeing": other}), "node")
    with pytest.raises(UsageError, match=r"has no processor_config\.json"):
        open_clients(tmp_path, manifest, "node")
    monkeypatch.setenv(VARIABLE, "0.05")
    with closing(TransformersJs(tmp_path)) as client, pytest.raises(VlmExportError, match=r"within 0\.05 seconds"):
        client.pixels(picture(0))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(MissingDependency, match=r"transformers\.js is not installed"):
        open_clients(onnx_bundle("fp32"), manifest, "node")
