"""Pictures that ``prepare`` wrote: what clients make of them is what the model was to see."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import InferenceSession
from PIL import ExifTags, Image, ImageCms
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.checkpoints import tiny_spec
from tests.command import vlmexport
from tests.manifests import manifest, source_named
from tests.onnx_bundles import Bundles, picture
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.bundle.source import Model
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.onnx import client_files
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.parity.compare.node import FOLDER, TransformersJs
from vlmexport.prepare import prepare
from vlmexport.processing.image import pixel_values
from vlmexport.processing.images import read_image
from vlmexport.runtime.open import open_runtime

TALL = (211, 640)


def write_bundle(folder: Path, image_processor: ImageProcessorSpec, kind: str = "gguf") -> Path:
    """A bundle's manifest, and the documents of its image processor where it has any."""
    folder.mkdir()
    spec = replace(tiny_spec("ldpnetv2"), image_processor=image_processor)
    write_manifest(folder, manifest(kind, source_named("tiny", spec=Model.of(spec))))
    if kind == "onnx":
        (folder / "preprocessor_config.json").write_text(json.dumps(client_files.preprocessor(spec)))
    return folder


def photo(path: Path, size: tuple[int, int] = TALL) -> Path:
    """A picture that lies on its side and has colours of its own."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB", 5000))
    picture(3, size[::-1]).save(path, exif=exif, icc_profile=profile.tobytes())
    return path


@pytest.mark.slow
@pytest.mark.parametrize("pads", [True, False])
def test_transformers_js_takes_a_prepared_picture_as_it_is(
    pads: bool, transformers_js: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ImageProcessorSpec.square(336, pads)
    bundle = write_bundle(tmp_path / "bundle", spec, "onnx")
    (one,) = prepare(bundle, [photo(tmp_path / "photo.png")], tmp_path / "out")
    expected = np.asarray(pixel_values(read_image(one.source), spec))
    monkeypatch.setenv(FOLDER, str(transformers_js))
    with closing(TransformersJs(bundle)) as client:
        assert np.abs(client.pixels(Image.open(one.file)) - expected).max() < 1e-6
        assert np.abs(client.pixels(read_image(one.source)) - expected).max() > 0.02  # a level is 0.015


@pytest.mark.slow
def test_arrays_are_what_the_vision_graph_takes(onnx_bundle: Bundles, tmp_path: Path) -> None:
    bundle = onnx_bundle("fp32")
    done = vlmexport("prepare", bundle, photo(tmp_path / "photo.png"), "--arrays", "-o", tmp_path, "--json")
    (facts,) = json.loads(done.stdout)
    assert facts["pixel_values"] == [1, 3, 336, 336]
    session = InferenceSession(bundle / read_manifest(bundle).seeing.file("vision_encoder"))
    (found,) = session.run(["image_features"], dict(np.load(facts["file"])))
    with closing(open_runtime(bundle)) as runtime:
        tokens = runtime.tokens(runtime.features(runtime.pixels(read_image(tmp_path / "photo.png"))))
    np.testing.assert_array_equal(found, tokens)


def tiles_of(source: Path, spec: ImageProcessorSpec) -> tuple[int, int]:
    """Rows and columns, as transformers' processor says them."""
    if spec.mode != "tiles":
        return 0, 0
    sizes = {"size": {"longest_edge": spec.size.longest_edge}, "max_image_size": {"longest_edge": spec.side}}
    made = SmolVLMImageProcessorPil(**sizes)(read_image(source), return_row_col_info=True)
    return made["rows"][0][0], made["cols"][0][0]


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("spec", [ImageProcessorSpec.square(56, True), ImageProcessorSpec.tiles(256, 64)])
def test_the_model_sees_the_same(spec: ImageProcessorSpec, arrays: bool, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", spec)
    pictures = [photo(tmp_path / f"{width}.png", (width, height)) for width, height in ((211, 640), (90, 61), (1, 9))]
    for source, one in zip(pictures, prepare(bundle, pictures, tmp_path / "out", arrays=arrays), strict=True):
        expected = np.asarray(pixel_values(read_image(source), spec))
        facts = one.facts()
        assert (one.source, one.kept, (facts["rows"], facts["cols"])) == (source, True, tiles_of(source, spec))
        found = np.load(one.file)["pixel_values"] if arrays else pixel_values(Image.open(one.file), spec)
        assert facts["pixel_values"] == list(found.shape)
        found = found[:, 0] if arrays and spec.mode == "tiles" else found
        np.testing.assert_array_equal(found, expected)
        if not arrays:
            with Image.open(one.file) as written:
                assert written.info == {}


def test_a_picture_that_clients_resize_again_is_told_of(tmp_path: Path) -> None:
    """The longest edge is no multiple of a tile: a client makes it shorter, then longer."""
    bundle = write_bundle(tmp_path / "bundle", ImageProcessorSpec.tiles(250, 64))
    given = ("prepare", bundle, photo(tmp_path / "photo.png"), "-o", tmp_path / "out")
    assert "pass --arrays" in vlmexport(*given).stderr
    done = vlmexport(*given, "--arrays")
    assert (done.stderr, done.stdout) == ("", f"{tmp_path / 'photo.png'} -> {tmp_path / 'out' / 'photo.npz'}\n")


def test_errors_are_one_line_and_write_nothing(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", ImageProcessorSpec.square(56, True))
    (tmp_path / "other").mkdir()
    first, second = photo(tmp_path / "photo.png"), photo(tmp_path / "other" / "photo.bmp")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert_one_line_error(vlmexport("prepare", bundle, first, second, "-o", out), 2, "two pictures would become")
    assert_one_line_error(vlmexport("prepare", tmp_path, first, "-o", out), 2, "is not a bundle")
    assert not out.exists()
    assert_one_line_error(vlmexport("prepare", bundle, tmp_path / "broken.png", "-o", out), 2, "cannot be read")
    assert list(out.iterdir()) == []
    assert vlmexport("prepare", bundle, first, "-o", out).returncode == 0
    assert_one_line_error(vlmexport("prepare", bundle, first, "-o", out), 2, "pass --force")
    assert vlmexport("prepare", bundle, second, "-o", out, "--force").returncode == 0
