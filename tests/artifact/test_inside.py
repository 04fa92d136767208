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
from tests.test_cli import assert_one_line_error
from vlmexport.artifact.bundle.manifest import MANIFEST, Manifest, list_files, read_manifest, source_of, write_manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_layers, int8_products
from vlmexport.errors import CheckpointError
from vlmexport.recipe import Recipe
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
        Manifest(
            kind="onnx", source=source_of(tiny), recipe=Recipe(), tools={}, files=list_files(folder, {}),
            details={"graphs": {"vision_encoder": "onnx/a.onnx"}, "language": "l.gguf", "mmproj": "m.gguf",
                     "tokenizer": "tokenizer.json", "features": "features"},
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
    "graphs": lambda document, path: document["details"]["graphs"].update(vision_encoder=path),
    "another graph": lambda document, path: document["details"]["graphs"].update(x=path),
    "language": lambda document, path: document["details"].update(language=path),
    "mmproj": lambda document, path: document["details"].update(mmproj=path),
    "tokenizer": lambda document, path: document["details"].update(tokenizer=path),
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
    assert read_manifest(bundle).details["graphs"] == {"vision_encoder": "onnx/a.onnx"}


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
@pytest.mark.parametrize("field", ["files", "graphs"])
def test_a_path_that_is_no_text(field: str, value: Any, bundle: Path) -> None:
    rewrite(bundle, lambda document: FIELDS[field](document, value))
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(bundle)


@pytest.mark.parametrize("command", ["inspect", "run"])
def test_on_the_command_line(command: str, bundle: Path, tmp_path: Path) -> None:
    rewrite(bundle, lambda document: FIELDS["graphs"](document, "../../secret.onnx"))
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
        (lambda document: document["source"]["spec"]["vision"].update(colour="red"), "'colour', which is unknown"),
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


@pytest.mark.parametrize("key", ["graphs", "features", "tokenizer"])
def test_what_a_manifest_lacks_is_told(key: str, bundle: Path) -> None:
    rewrite(bundle, lambda document: document["details"].pop(key))
    with pytest.raises(CheckpointError, match=rf"vlmexport\.json lacks {key} among its details: export"):
        read_manifest(bundle).details[key]
    rewrite(bundle, lambda document: document.pop("details"))
    with pytest.raises(CheckpointError, match=f"lacks {key}"):
        read_manifest(bundle).details[key]


def test_a_graph_that_a_manifest_lacks_is_told(bundle: Path) -> None:
    graphs = read_manifest(bundle).details["graphs"]
    assert "projector" not in graphs
    with pytest.raises(CheckpointError, match="lacks projector"):
        graphs["projector"]


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


def test_a_manifest_whose_image_processor_was_part_of_the_encoder(bundle: Path) -> None:
    """So were those of the first versions."""
    new = read_manifest(bundle)

    def older(document: Document) -> None:
        spec = document["source"]["spec"]
        pixels = spec.pop("image_processor")
        colours = {key: pixels[key] for key in ("image_mean", "image_std")}
        spec["vision"] |= colours | {"aspect_ratio": "pad" if pixels["do_pad"] else "crop"}

    rewrite(bundle, older)
    assert read_manifest(bundle) == new
