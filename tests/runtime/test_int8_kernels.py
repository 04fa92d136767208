"""Which int8 kernels run here, which elsewhere, and which bundles lose something on those that saturate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch import nn

from tests.onnx_bundles import Bundles, open_exact, picture
from tests.processors import run_there
from tests.quantize.graphs import F32, layer_graph
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.read.int8_layers import int8_products
from vlmexport.parity.compare.kernels import bundle_kernels
from vlmexport.quantize.noise import decibels
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.static_int8 import quantize
from vlmexport.runtime.int8_kernels import Int8Kernels
from vlmexport.runtime.llamacpp.int8_kernels import compiled_kernels
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.ort import int8_kernels
from vlmexport.runtime.ort.int8_kernels import find_kernels, kernels_here
from vlmexport.runtime.ort.remote_sessions import WorkerSessions, own_worker
from vlmexport.runtime.ort.sessions import MACHINES, LocalSessions

NAMES = {"x86": {"VNNI", "AVX2 without VNNI", "AVX-512 without VNNI"}, "arm64": {"i8mm", "dot product", "NEON"}}
ASK = """
import json, sys
from vlmexport.runtime.ort.int8_kernels import find_kernels, kernels_here
from vlmexport.runtime.ort.remote_sessions import own_worker, WorkerSessions
worker = own_worker()
print(json.dumps([[one.name, one.saturates] for one in (kernels_here(), find_kernels(WorkerSessions(worker)))]))
worker.close()
"""
SEE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.parity.compare.kernels import bundle_kernels
from vlmexport.runtime.open import open_runtime
runtime = open_runtime(Path(sys.argv[1]))
np.save(sys.argv[3], runtime.features(runtime.pixels(Image.open(sys.argv[2]))).rows)
print(bundle_kernels(runtime, Path(sys.argv[1]), read_manifest(Path(sys.argv[1]))).layers)
"""


def test_what_is_asked() -> None:
    weights = helper.make_tensor("weights", TensorProto.INT8, [2, 1], bytes([127, 127]), raw=True)
    node = helper.make_node("MatMulInteger", ["levels", "weights"], ["sums"])
    levels = helper.make_tensor_value_info("levels", TensorProto.UINT8, ["rows", 2])
    sums = helper.make_tensor_value_info("sums", TensorProto.INT32, ["rows", 1])
    graph = helper.make_graph([node], "g", [levels], [sums], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert onnx.load_from_string(int8_kernels._PRODUCT) == model


def test_they_are_named_and_a_worker_has_the_same() -> None:
    found = kernels_here()
    machine = next(name for name, machines in MACHINES.items() if LocalSessions().machine in machines)
    assert found.name in NAMES[machine]
    assert found.saturates == found.name.endswith("without VNNI")
    worker = own_worker()
    try:
        assert find_kernels(WorkerSessions(worker)) == found
    finally:
        worker.close()


def test_avx2_alone_saturates(avx2: dict[str, str]) -> None:
    """/proc/cpuinfo still says what this processor has: the library is asked what it computes."""
    assert json.loads(run_there(avx2, ASK)) == [["AVX2 without VNNI", True]] * 2


@pytest.mark.parametrize(
    ("machine", "instructions", "name"),
    [("aarch64", ["dot product", "i8mm"], "i8mm"), ("arm64", ["dot product"], "dot product"), ("aarch64", [], "NEON")],
)
def test_cores_of_arm64(machine: str, instructions: list[str], name: str) -> None:
    sessions = LocalSessions()
    sessions.machine, sessions.instructions = machine, instructions
    assert find_kernels(sessions).name == name


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | ", "VNNI"),
        ("CPU : SSE3 = 1 | SSSE3 = 1 | AVX2 = 1 | AVX512_VNNI = 0 | ", "AVX2 without VNNI"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | MATMUL_INT8 = 1 | ", "i8mm"),
        ("", "plain C"),
    ],
)
def test_what_llama_cpp_was_compiled_with(said: str, name: str) -> None:
    assert compiled_kernels(said) == name


@pytest.mark.parametrize(
    ("scheme", "weight", "saturates"),
    [("fbgemm", 1.0, True), ("qnnpack", 1.0, False), ("fbgemm", -1.0, True), ("fbgemm", 0.0, False)],
)
def test_products_that_can_saturate(scheme: str, weight: float, saturates: bool, tmp_path: Path) -> None:
    """All weights are equal, or the second of each pair is zero: then no two leave int16."""
    layer = nn.Linear(8, 4)
    nn.init.ones_(layer.weight)
    layer.weight.data[:, 1::2] = weight
    layer.weight.data[:, ::2] = weight or 1.0
    model = layer_graph(layer, ("batch", 40, 8))
    quantize(model, {"layer": Range(-4, 4)}, find_scheme(scheme))
    save(model, tmp_path / "graph.onnx")
    (product,) = int8_products(tmp_path / "graph.onnx")
    assert (product.name, product.can_saturate()) == ("layer", saturates)


@pytest.mark.slow
def test_a_bundles_kernels(onnx_bundle: Bundles) -> None:
    def found(name: str) -> Int8Kernels | None:
        bundle = onnx_bundle(name)
        return bundle_kernels(open_runtime(bundle), bundle, read_manifest(bundle))

    here = kernels_here()
    assert found("fp32") is None
    for name in ("int8", "int4"):
        layers = len(saturating(onnx_bundle(name))) if here.saturates else None
        assert found(name) == Int8Kernels(here.name, here.saturates, layers)
    assert not saturating(onnx_bundle("int4"))


@pytest.mark.slow
def test_the_default_recipe_keeps_its_features_on_avx2(
    onnx_bundle: Bundles, avx2: dict[str, str], tmp_path: Path
) -> None:
    """What int8 costs there is what it costs with VNNI, to half a decibel; layers are counted as the graph has them."""
    bundle, image, file = onnx_bundle("int8"), tmp_path / "image.png", tmp_path / "features.npy"
    picture(3).save(image)
    assert int(run_there(avx2, SEE, bundle, image, file)) == len(saturating(bundle))
    exact, whole = open_exact(bundle), open_runtime(onnx_bundle("fp32"))
    pixels = exact.pixels(picture(3))
    want = whole.features(pixels).rows

    def ratio(got: F32) -> float:
        return decibels(float(np.square(want).mean()), float(np.square(got - want).mean()))

    assert ratio(np.load(file)) > ratio(exact.features(pixels).rows) - 0.5


def saturating(bundle: Path) -> set[str]:
    graphs = read_manifest(bundle).graphs().values()
    return {one.name for graph in graphs for one in int8_products(bundle / graph) if one.can_saturate()}


def test_a_verdict_says_what_is_lost() -> None:
    assert Int8Kernels("VNNI").notes(False) == Int8Kernels("AVX2 without VNNI", True, 0).notes(False) == ()
    (note,) = Int8Kernels("AVX2 without VNNI", True, 7).notes(False)
    assert "AVX2 without VNNI" in note
    assert "7 layers" in note
    assert "saturation" in note
    assert "saturation" not in Int8Kernels("AVX2 without VNNI", True, 7).notes(True)[0]
    assert str(Int8Kernels("AVX2 without VNNI", True, 7)) == "AVX2 without VNNI, which can saturate in 7 layers"
    assert str(Int8Kernels("AVX2 without VNNI", True, 0)) == "AVX2 without VNNI (no layer can saturate)"
    assert str(Int8Kernels("AVX2 without VNNI", True)) == "AVX2 without VNNI, which can saturate"
