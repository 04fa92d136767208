"""The view of the whole, made in the graph: what the pixels stage makes of the picture, whatever a client sent."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, checker, helper
from onnxruntime import InferenceSession
from PIL import Image

from vlmexport.artifact.onnx.build.whole_view import can_repair, prepend, repairing
from vlmexport.calibrate.samples import calibration_folder
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.processing.image import F32, pixel_values

SIDE, MOST = 48, 4
SPEC = ImageProcessorSpec.tiles(MOST * SIDE, SIDE, image_mean=(0.4, 0.5, 0.6), image_std=(0.3, 0.5, 0.2))
LEVEL = 1 / 255 / 0.2
GRIDS = [(rows, columns) for rows in range(1, MOST + 1) for columns in range(1, MOST + 1) if max(rows, columns) == MOST]


@cache
def session() -> InferenceSession:
    model = repairing(SPEC)
    checker.check_model(model, full_check=True)
    return InferenceSession(model.SerializeToString())


def repaired(views: F32) -> F32:
    """[batch, views, 3, side, side] through the graph."""
    (found,) = session().run(None, {"pixel_values": views})
    return np.asarray(found)


def views_of(seed: int, rows: int, columns: int) -> tuple[F32, F32]:
    """The right views of a picture that has its final size, and those of transformers.js."""
    photo = Image.open(calibration_folder() / "images" / f"photo-{('coffee', 'rocket', 'clock')[seed]}.jpg")
    right = pixel_values(photo.convert("RGB").resize((columns * SIDE, rows * SIDE)), SPEC)
    assert len(right) == rows * columns + 1
    whole = right[:-1].reshape(rows, columns, 3, SIDE, SIDE).transpose(2, 0, 3, 1, 4)
    picture_of_tiles = torch.from_numpy(whole.reshape(1, 3, rows * SIDE, columns * SIDE).copy())
    small = torch.nn.functional.interpolate(picture_of_tiles, (SIDE, SIDE), mode="bilinear", antialias=False)
    return right[None], np.concatenate([right[:-1], small.numpy()])[None]


@pytest.mark.parametrize(("rows", "columns"), GRIDS)
def test_the_whole_is_pillows(rows: int, columns: int) -> None:
    for seed in range(2):
        right, sent = views_of(seed, rows, columns)
        found = repaired(sent)
        np.testing.assert_array_equal(found[:, :-1], sent[:, :-1])
        apart = np.abs(found[0, -1] - right[0, -1])
        assert apart.max() < 1.01 * LEVEL
        assert (apart > 0).mean() < 1e-3
        assert np.abs(sent[0, -1] - right[0, -1]).max() > 5 * LEVEL


def test_what_is_left_as_it_is() -> None:
    """The right views, one view, views along the batch, views of two pictures in a row, and one of something else."""
    right, one = views_of(0, 4, 1)
    _, other = views_of(1, 1, 4)
    for given in (
        right,
        one[:, :1],
        one.transpose(1, 0, 2, 3, 4),
        np.concatenate([one, other], 1),
        one[:, [0, 1, 2, 3, 0]],
    ):
        np.testing.assert_array_equal(repaired(given), given)


def test_before_a_vision_graph() -> None:
    """Its other nodes read what was made."""
    shape = ["batch_size", "num_images", 3, SIDE, SIDE]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixel_values", "made"))
    graph = helper.make_graph([helper.make_node("Neg", ["pixel_values"], ["made"])], "vision", [given], [made])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    prepend(model, SPEC)
    _, sent = views_of(2, 3, 4)
    (found,) = InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"pixel_values": sent})
    np.testing.assert_array_equal(found, -repaired(sent))


def test_a_view_that_is_near_to_none_stays() -> None:
    """Of noise."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (192, 192, 3), dtype=np.uint8))
    right = pixel_values(noise, SPEC)[None]
    sent = np.concatenate([right[:, :-1], right[:, :1]], 1)
    np.testing.assert_array_equal(repaired(sent), sent)


def test_pictures_that_it_is_not_for() -> None:
    """Those whose tiles have no bound in number, or that a client resizes once more, or by another filter."""
    assert can_repair(ImageProcessorSpec.tiles(256, 64))
    for longest, others in (
        (256, {"do_resize": False}), (256, {"splits": False}), (200, {}), (64, {}), (256, {"resample": 3})
    ):  # fmt: skip
        assert not can_repair(ImageProcessorSpec.tiles(longest, 64, **others))
