"""The page's module under Node makes views of pictures as transformers' image processors do on Pillow."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.onnx_bundles import picture
from vlmexport.calibrate.samples import calibration_folder
from vlmexport.processing.javascript import MODULE

SCRIPT = Path(__file__).with_name("pixels.mjs")
ULPS = 2**-21
"""Transformers rescales in float64, we in float32: so far apart at most, of pixels between -2 and 2.2."""

PHOTO = calibration_folder() / "images" / "photo-chelsea.jpg"
SIZES = [
    (1, 1), (1, 4000), (4000, 1), (333, 500), (512, 512), (513, 512), (640, 480), (1024, 2048), (2048, 2048),
    (3024, 4032),
]  # fmt: skip
PILLOW_13 = int(PIL.__version__.partition(".")[0]) >= 13
"""Since then Pillow goes down before across where the height shrinks far more than the width."""


class Node:
    """One process for all pictures of a test file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "picture"
        command = ["node", str(SCRIPT), str(MODULE)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, image: Image.Image, config: dict[str, Any], values: bool = True) -> dict[str, Any]:
        """What the module says of a picture; ``values``: they are made, too, and not its levels alone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._file.write_bytes(np.asarray(image).tobytes())
        request = {
            "picture": str(self._file), "width": image.width, "height": image.height, "config": config, "values": values
        }  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def levels(self, views: int) -> np.ndarray:
        """u8 [views, height, width, 3] of the picture that was asked for last."""
        found = np.fromfile(f"{self._file}.levels", np.uint8)
        side = round((found.size / views / 3) ** 0.5)
        return found.reshape(views, side, side, 3)

    def values(self) -> np.ndarray:
        """f32 of the same."""
        return np.fromfile(f"{self._file}.values", np.float32)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    started = Node(tmp_path_factory.mktemp("pixels"))
    yield started
    started.process.communicate()


def tiles(kind: type[Any], tile: int, longest: int, **others: object) -> Any:
    """An image processor that cuts tiles."""
    return kind(
        size={"longest_edge": longest}, max_image_size={"longest_edge": tile}, return_row_col_info=True, **others
    )


def saved(processor: Any) -> dict[str, Any]:
    """``preprocessor_config.json`` as transformers writes it."""
    document: dict[str, Any] = json.loads(processor.to_json_string())
    return document


def assert_same(node: Node, processor: Any, image: Image.Image, values: bool = True) -> None:
    """Every level of every view, rows and columns; what the model is given, too, where ``values`` says so."""
    answer = node.ask(image, saved(processor), values)
    assert answer.get("error") is None
    plain = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    expected = np.asarray(plain["pixel_values"])
    views = expected.reshape(-1, *expected.shape[-3:]).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(node.levels(len(views)), views)
    if "rows" in plain:
        assert ([[answer["rows"]]], [[answer["cols"]]]) == (plain["rows"], plain["cols"])
    if values:
        made = processor(image, return_tensors="np")
        assert answer["pixel_values"] == {"type": "float32", "dims": list(expected.shape)}
        np.testing.assert_allclose(node.values(), made["pixel_values"].ravel(), rtol=0, atol=ULPS)
        if "pixel_attention_mask" in made:
            shape = list(made["pixel_attention_mask"].shape)
            assert answer["pixel_attention_mask"] == {"type": "bool", "dims": shape}
            assert answer["whole"] == made["pixel_attention_mask"].all()


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_512(size: tuple[int, int], node: Node) -> None:
    if size == (1024, 2048) and not PILLOW_13:
        pytest.skip("Pillow before 13 resizes across before down")
    image = Image.open(PHOTO).resize(size) if size[0] < 640 else picture(3, size)
    longest = 2048 if size == (640, 480) else 1024
    assert_same(node, tiles(SmolVLMImageProcessorPil, 512, longest), image, values=False)


@pytest.mark.parametrize("seed", range(12))
def test_tiles_of_any_picture(seed: int, node: Node) -> None:
    random = np.random.default_rng(seed)
    tile = int(random.choice([32, 56, 91]))
    width, height = (int(side) for side in np.exp(random.uniform(0, 6.5, 2)))
    if height > width and not PILLOW_13:
        width, height = height, width
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = tiles(Idefics3ImageProcessorPil, tile, int(random.integers(1, 6)) * tile + int(random.integers(0, 9)))
    assert_same(node, processor, Image.fromarray(pixels))


@pytest.mark.parametrize(
    "others",
    [
        {"do_image_splitting": False}, {"do_resize": False}, {"resample": 3}, {"resample": 2},
        {"size": {"height": 100, "width": 150}}, {"size": {"longest_edge": 64}},
    ],
)  # fmt: skip
def test_what_a_processor_may_say(others: dict[str, Any], node: Node) -> None:
    processor = tiles(Idefics3ImageProcessorPil, 64, 256)
    for name, value in others.items():
        setattr(processor, name, value)
    assert_same(node, type(processor)(**saved(processor), return_row_col_info=True), picture(1, (201, 130)))


def test_longer_than_4096(node: Node) -> None:
    assert_same(node, tiles(Idefics3ImageProcessorPil, 512, 5120), picture(2, (300, 29)), values=False)


@pytest.mark.parametrize("size", [(224, 56), (31, 57), (300, 1500), (1500, 300), (90, 90)])
def test_one_view(size: tuple[int, int], node: Node) -> None:
    if size[0] < size[1] and not PILLOW_13:
        pytest.skip("Pillow before 13 resizes across before down")
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    for processor in (CLIPImageProcessorPil(**sizes), LlavaImageProcessorPil(do_pad=True, **sizes)):
        assert_same(node, processor, picture(4, size))


def test_what_is_transparent_is_white(node: Node) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    answer = node.ask(image, saved(tiles(Idefics3ImageProcessorPil, 64, 64)))
    assert answer["pixel_values"]["dims"] == [1, 1, 3, 64, 64]
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert (answer["rows"], answer["cols"]) == (0, 0)
    np.testing.assert_array_equal(node.levels(1)[0], np.asarray(expected))


def test_the_nested_file_and_one_that_is_not_known(node: Node) -> None:
    told = saved(tiles(Idefics3ImageProcessorPil, 64, 64))
    image = picture(5, (64, 64))
    assert node.ask(image, {"image_seq_len": 64, "image_processor": told}) == node.ask(image, told)
    found = node.ask(image, told | {"image_processor_type": "Qwen2VLImageProcessor"})
    assert found == {"error": "the views of a Qwen2VLImageProcessor are not known: CLIP, Llava, Idefics3, SmolVLM are"}
