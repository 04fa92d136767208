"""Int8 weights beside the float model's: right ones are right whatever was folded into them, a wrong one is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.mutations.copies import link
from tests.onnx_bundles import Bundles
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_layers
from vlmexport.parity.layers.int8_weights import compare_weights, weight_gates
from vlmexport.parity.result import WeightsResult
from vlmexport.source.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

DECODER = "decoder_model_merged"
LAYER = "language.model.layers.0"


def compared(bundle: Path, checkpoint: Checkpoint) -> WeightsResult:
    found = compare_weights(bundle, read_manifest(bundle), checkpoint)
    assert found is not None
    return found


def damaged(bundle: Path, folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A copy with other initializers in the decoder."""
    shutil.copytree(bundle, folder, copy_function=link)
    path = folder / read_manifest(bundle).graphs()[DECODER]
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(change(tensor.name, array).astype(array.dtype), tensor.name))
    path.unlink()
    onnx.save(model, path)
    return folder


def test_right_weights(onnx_bundle: Bundles, short: Checkpoint) -> None:
    found = compared(onnx_bundle("int8"), short)
    assert (found.faults, found.not_compared) == ([], [])
    assert set(found.layers) == {"features", "tokens", "logits"}
    assert found.layers["logits"] == 8  # seven of the one layer, and the head
    assert all(gate.passed for gate in weight_gates(found))


@pytest.mark.parametrize("kind", ["link", "second name"])
def test_data_beside_a_graph_may_be_shared(kind: str, onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path) -> None:
    """As in the Hub's cache, where files are links to blobs, and in copies that share their bytes."""
    bundle = Path(shutil.copytree(onnx_bundle("int8"), tmp_path / "models--a--b" / "snapshots" / "c0ffee"))
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in read_manifest(bundle).graphs().values():
        path = bundle / file
        onnx.save(onnx.load(path), path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=0)
        data, blob = path.with_name(f"{path.name}_data"), blobs / path.name
        data.rename(blob)
        data.symlink_to(blob) if kind == "link" else os.link(blob, data)
    assert compared(bundle, short) == compared(onnx_bundle("int8"), short)


def test_a_float_bundle_has_none(onnx_bundle: Bundles, short: Checkpoint) -> None:
    assert compare_weights(onnx_bundle("fp32"), read_manifest(onnx_bundle("fp32")), short) is None


def test_every_layer_is_looked_at(onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path) -> None:
    def scaled(name: str, array: np.ndarray) -> np.ndarray:
        return array * 1.01 if name.endswith(".weight_scale") else array

    found = compared(damaged(onnx_bundle("int8"), tmp_path / "scaled", scaled), short)
    path = onnx_bundle("int8") / read_manifest(onnx_bundle("int8")).graphs()[DECODER]
    smoothed = read_manifest(onnx_bundle("int8")).smoothed(DECODER)
    folded = {layer.path for layer in int8_layers(path) if layer.path in smoothed and layer.divisor is None}
    # A layer whose scales are folded into another one shows at that one: of the two, no one can say which is wrong.
    assert {fault.layer for fault in found.faults} == {layer.path for layer in int8_layers(path)} - folded
    assert [gate.passed for gate in weight_gates(found) if gate.stage == "logits"] == [False]


def test_one_level(onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path) -> None:
    def moved(name: str, array: np.ndarray) -> np.ndarray:
        if name == f"{LAYER}.self_attn.q_proj.weight_int8":
            array[3, 5] += 1 if array[3, 5] < 0 else -1
        return array

    (fault,) = compared(damaged(onnx_bundle("int8"), tmp_path / "moved", moved), short).faults
    assert fault.layer == f"{LAYER}.self_attn.q_proj"
    assert "channel 5 is" in fault.what
    assert fault.what.startswith("1 of ")


def test_an_input_that_is_read_otherwise_than_written(onnx_bundle: Bundles, short: Checkpoint, tmp_path: Path) -> None:
    folder = damaged(onnx_bundle("int8"), tmp_path / "read", lambda _, array: array)
    path = folder / read_manifest(folder).graphs()[DECODER]
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if node.name == f"{LAYER}.self_attn.v_proj.input_dq")
    (zero,) = (t for t in model.graph.initializer if t.name == node.input[2])
    other = numpy_helper.from_array(np.asarray(numpy_helper.to_array(zero) + 1, np.uint8), "other_zero")
    model.graph.initializer.append(other)
    node.input[2] = "other_zero"
    onnx.save(model, path)
    (fault,) = compared(folder, short).faults
    assert fault.layer == f"{LAYER}.self_attn.v_proj"
    assert fault.what.startswith("its input is written with scale ")
