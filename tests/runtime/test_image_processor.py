"""What a bundle's image processor says is what its pixels are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import tiny_spec
from vlmexport.artifact.onnx.client_files import preprocessor
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError
from vlmexport.processing.image_processor import FILE, read_told


def told(folder: Path, ratio: str, **changes: Any) -> Path:
    spec = tiny_spec("ldpnetv2")
    document = preprocessor(replace(spec, image_processor=spec.image_processor.with_padding(ratio == "pad")))
    (folder / FILE).write_text(json.dumps(document | changes))
    return folder


@pytest.mark.parametrize("ratio", ["pad", "crop"])
def test_what_was_written(ratio: str, tmp_path: Path) -> None:
    right = tiny_spec("ldpnetv2").image_processor.with_padding(ratio == "pad")
    known = ImageProcessorSpec.square(1, ratio != "pad", image_mean=(0, 0, 0), image_std=(1, 1, 1), do_normalize=False)
    assert read_told(told(tmp_path, ratio), known) == right


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_pad": False}, "neither crops nor pads"),
        ({"do_center_crop": True}, "crops and pads"),
        ({"pad_size": {"width": 3, "height": 4}}, "not square"),
        ({"image_mean": [0.5]}, "not enough values"),
        ({"pad_size": None}, "not subscriptable"),
    ],
)
def test_what_cannot_be_followed(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_told(told(tmp_path, "pad", **changes), tiny_spec("ldpnetv2").image_processor)


TILES = ImageProcessorSpec.tiles(256, 64)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"size": {"longest_edge": 128}, "image_mean": None}, ImageProcessorSpec.tiles(128, 64)),
        ({"do_image_splitting": False, "do_pad": True}, ImageProcessorSpec.tiles(256, 64, splits=False)),
        ({"do_resize": False}, ImageProcessorSpec.tiles(256, 64, do_resize=False)),
    ],
)
def test_tiles(document: dict[str, Any], expected: ImageProcessorSpec, tmp_path: Path) -> None:
    """What a file leaves out is as it was when the bundle was made."""
    (tmp_path / FILE).write_text(json.dumps(document))
    assert read_told(tmp_path, TILES) == expected


@pytest.mark.parametrize("document", [{"max_image_size": {"longest_edge": 32}}, {"size": {"shortest_edge": 5}}])
def test_tiles_that_cannot_be_followed(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="cannot be followed"):
        read_told(tmp_path, TILES)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be followed"):
        read_told(tmp_path, tiny_spec("ldpnetv2").image_processor)
