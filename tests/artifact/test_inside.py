"""A bundle's manifest is input from a stranger: what it names lies in the bundle, or nothing is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.command import vlmexport
from tests.manifests import manifest
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.contents import list_files, source_of
from vlmexport.artifact.bundle.halves import ONNXRUNTIME, DecodingHalf, SeeingHalf
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_layers, int8_products
from vlmexport.errors import CheckpointError
from vlmexport.runtime.open import open_runtime
from vlmexport.source.checkpoint import Checkpoint

Document = dict[str, Any]


@pytest.fixture(scope="module")
def written(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest names a file in every place that has one."""
    folder = tmp_path_factory.mktemp("written") / "b"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "a.onnx").write_bytes(b"weights")
    write_manifest(
        folder,
        manifest(
            "onnx", source_of(tiny), files=list_files(folder, {}),
            seeing=SeeingHalf(
                engine=ONNXRUNTIME, precision="fp32", files={"vision_encoder": "onnx/a.onnx", "mmproj": "m.gguf"},
                outputs={"features": "features"},
            ),
            decoding=DecodingHalf(
                engine=ONNXRUNTIME, precision="fp32", files={"language": "l.gguf", "tokenizer": "tokenizer.json"}
            ),
        ),
    )  # fmt: skip
    return folder


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "b"))


def rewrite(bundle: Path, change: Callable[[Document], Any]) -> None:
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))


FIELDS: dict[str, Callable[[Document, str], Any]] = {
    "files": lambda document, path: document["files"][0].update(path=path),
    "vision encoder": lambda document, path: document["seeing"]["files"].update(vision_encoder=path),
    "mmproj": lambda document, path: document["seeing"]["files"].update(mmproj=path),
    "projector": lambda document, path: document["seeing"]["files"].update(projector=path),
    "language": lambda document, path: document["decoding"]["files"].update(language=path),
    "tokenizer": lambda document, path: document["decoding"]["files"].update(tokenizer=path),
}  # fmt: skip

OUTSIDE = {
    "absolute": "/etc/passwd",
    "above": "../x",
    "above, later": "onnx/../../x",
    "here": ".",
    "double slash": "//host/share",
    "drive": "C:/x",
    "drive, relative": "C:x",
    "stream": "x.onnx:more",
    "backslash": "..\\x",
    "UNC": "\\\\host\\share\\x",
    "dropped by Windows": ".. /x",
    "dots dropped by Windows": "onnx/.../x",
    "empty": "",
    "folder": "onnx/",
    "NUL": "x\0.onnx",
    "line break": "x\ny",
    "long": "x/" * 600 + "x",
}


def test_what_a_bundle_names_is_read(bundle: Path) -> None:
    assert read_manifest(bundle).graphs() == {"vision_encoder": "onnx/a.onnx"}


@pytest.mark.parametrize("path", OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("field", FIELDS)
def test_every_path_of_every_field(field: str, path: str, bundle: Path) -> None:
    rewrite(bundle, lambda document: FIELDS[field](document, path))
    with pytest.raises(CheckpointError) as caught:
        open_runtime(bundle)
    assert caught.value.exit_code == 2
    assert caught.value.cure == "do not trust this bundle"
    assert MANIFEST in caught.value.what
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, ["a"], {"a": "b"}])
@pytest.mark.parametrize("field", ["files", "vision encoder"])
def test_a_path_that_is_no_text(field: str, value: Any, bundle: Path) -> None:
    rewrite(bundle, lambda document: FIELDS[field](document, value))
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(bundle)


@pytest.mark.parametrize("command", ["inspect", "run"])
def test_on_the_command_line(command: str, bundle: Path, tmp_path: Path) -> None:
    rewrite(bundle, lambda document: FIELDS["vision encoder"](document, "../../secret.onnx"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    more = ["--image", tmp_path / "x.png", "What?"] if command == "run" else []
    assert_one_line_error(vlmexport(command, bundle, *more), 2, "leads out of the bundle", "do not trust")


@pytest.mark.parametrize("place", ["a.onnx", "onnx/a.onnx", "tokenizer_config.json", "folder"])
def test_links_out_of_the_bundle(place: str, bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("mine")
    (bundle / place).unlink(missing_ok=True)
    (bundle / place).symlink_to(outside if place == "folder" else outside / "secret")
    with pytest.raises(CheckpointError, match=r"is a link to a file outside of the bundle: do not trust"):
        read_manifest(bundle)


def test_links_within_it_and_of_the_hubs_cache(bundle: Path, tmp_path: Path) -> None:
    (bundle / "b.onnx").symlink_to("onnx/a.onnx")
    read_manifest(bundle)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    shutil.copytree(bundle, snapshot, symlinks=True)
    (snapshot / MANIFEST).rename(blobs / "1")
    (snapshot / MANIFEST).symlink_to("../../blobs/1")
    read_manifest(snapshot)
    (snapshot / "c.onnx").symlink_to("../../../secret")
    with pytest.raises(CheckpointError, match="outside of the bundle"):
        read_manifest(snapshot)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document["source"]["spec"]["vision"].update(image_size="wide"), "image_size"),
        (
            lambda document: document["source"]["spec"]["vision"].update(colour="red"),
            "vision.colour: Extra inputs",
        ),
        (lambda document: document["source"]["spec"].pop("language"), "language"),
        (lambda document: document.update({"new\nline": 1}), "new line"),
    ],
)
def test_a_spec_of_another_version(change: Callable[[Document], Any], said: str, bundle: Path) -> None:
    rewrite(bundle, change)
    with pytest.raises(CheckpointError, match="damaged or of another version") as caught:
        read_manifest(bundle)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LACKING: dict[str, tuple[Callable[[Document], Any], Callable[[Manifest], str]]] = {
    "vision_encoder": (
        lambda document: document["seeing"]["files"].pop("vision_encoder"),
        lambda manifest: manifest.seeing.file("vision_encoder"),
    ),
    "features": (
        lambda document: document["seeing"].pop("outputs"), lambda manifest: manifest.seeing.output("features")
    ),
    "tokenizer": (
        lambda document: document["decoding"].pop("files"), lambda manifest: manifest.decoding.file("tokenizer")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_what_a_manifest_lacks_is_told(name: str, bundle: Path) -> None:
    remove, read = LACKING[name]
    assert read(read_manifest(bundle))
    rewrite(bundle, remove)
    with pytest.raises(CheckpointError, match=rf"vlmexport\.json lacks {name}: export"):
        read(read_manifest(bundle))


@pytest.mark.parametrize("half", ["seeing", "decoding"])
def test_a_manifest_of_one_half(half: str, bundle: Path) -> None:
    rewrite(bundle, lambda document: document.pop(half))
    with pytest.raises(CheckpointError, match=rf"another version \({half}: Field required\)"):
        read_manifest(bundle)


def test_another_version(bundle: Path) -> None:
    rewrite(bundle, lambda document: document.update(schema_version=3))
    with pytest.raises(CheckpointError, match=r"has schema version 3, known are 1 and 2: install a newer vlmexport"):
        read_manifest(bundle)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_manifest_that_is_none_says_why(text: str, bundle: Path) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"another version \((Invalid JSON|Input should be an object)"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" + " " * (65 << 20) + "}", "\xff"], ids=["deep", "large", "garbled"]
)
def test_a_manifest_without_end(text: str, bundle: Path) -> None:
    (bundle / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"vlmexport\.json is damaged"):
        read_manifest(bundle)


@pytest.mark.parametrize("read", [int8_layers, int8_products])
@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_external_data_of_a_graph(location: str, read: Callable[[Path], Iterator[object]], tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, location, 0, 16)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    (tmp_path / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(CheckpointError, match="names external data outside of the bundle"):
        list(read(tmp_path / "a.onnx"))
