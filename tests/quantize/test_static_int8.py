"""Static int8: ranges, Q/DQ pairs, smoothing, two terms, and that nothing stays float unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.quantize.graphs import F32, fused, gated_graph, layer_graph, observed, outputs
from tests.quantize.simulate import simulate
from vlmexport.calibrate import Statistics
from vlmexport.errors import NotEnoughData, UsageError, VlmExportError
from vlmexport.quantize.choice import Limits, choose
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.noise import decibels
from vlmexport.quantize.observers import activation_range, squared_error
from vlmexport.quantize.products import products
from vlmexport.quantize.ranges import Range, quantize_weight, weight_scales
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.smooth import fold, groups
from vlmexport.quantize.static_int8 import kept_by_kind, quantize
from vlmexport.recipe import Onnx
from vlmexport.runtime.ort.int8_kernels import kernels_here

SCHEMES = ("fbgemm", "qnnpack", "qnnpack-per-tensor")


def ratio(got: F32, want: F32) -> float:
    return decibels(float(np.square(want).mean()), float(np.square(got - want).mean()))


@given(low=st.floats(-100, 0), high=st.floats(0, 100), name=st.sampled_from(SCHEMES))
def test_zero_is_exact_and_the_range_is_held(low: float, high: float, name: str) -> None:
    scheme = find_scheme(name)
    scale, zero = Range(low, high).parameters(scheme)
    assert scheme.activation_min <= zero <= scheme.activation_max
    levels = np.clip(np.round(np.array([0.0, low, high]) / scale) + zero, scheme.activation_min, scheme.activation_max)
    np.testing.assert_allclose((levels - zero) * scale, [0.0, low, high], atol=scale * 1.01)
    assert (levels[0] - zero) == 0


def test_least_squares_beats_minmax_on_outliers() -> None:
    scheme = find_scheme("fbgemm")
    values = np.random.default_rng(0).standard_normal((20000, 16)).astype(np.float32)
    values[3, 5] = 20
    layer = observed(values)
    full, best = (activation_range(layer, observer, scheme) for observer in ("minmax", "mse"))
    counts = np.ones(values.size)
    low, high = np.array([full.low, best.low]), np.array([full.high, best.high])
    error = squared_error(values.ravel().astype(np.float64), counts, low, high, scheme)
    assert error[1] < 0.75 * error[0]
    assert full.low <= best.low < 0 < best.high <= full.high


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_round_to_half_a_step(name: str) -> None:
    scheme = find_scheme(name)
    weight = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    scales = weight_scales(weight, 1, scheme)
    assert scales.shape == ((8,) if scheme.per_channel else (1,))
    levels = quantize_weight(weight, scales, 1, scheme)
    assert (np.abs(levels * scales - weight) <= 0.5 * scales + 1e-6).all()


def test_onnxruntime_fuses_every_product(tmp_path: Path) -> None:
    """Signed activations too, and both halves of a layer with two terms."""
    layer, x = nn.Linear(64, 32), np.random.default_rng(2).standard_normal((1, 40, 64)).astype(np.float32)
    for name in ("fbgemm", "qnnpack"):
        for twice, expected in ((None, 1), ({"layer": "test"}, 2)):
            model = layer_graph(layer, ("batch", 40, 64))
            quantize(model, {"layer": Range(-4, 4)}, find_scheme(name), twice=twice)
            outputs(model, x, tmp_path)
            kinds = fused(tmp_path / "graph.onnx", tmp_path)
            assert kinds.count("MatMulIntegerToFloat") == expected, kinds
            assert "MatMul" not in kinds


def test_two_terms_leave_the_weights_error_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(256, 64)
    x = np.random.default_rng(3).standard_t(2, (200, 256)).astype(np.float32)
    want = layer(torch.from_numpy(x)).detach().numpy()
    span, found = Range(float(x.min()), float(x.max())), []
    for twice in (None, {"layer": "test"}):
        model = layer_graph(layer, (200, 256))
        coverage = quantize(model, {"layer": span}, find_scheme("fbgemm"), twice=twice)
        assert coverage.share == 1.0
        found.append(ratio(outputs(model, x, tmp_path), want))
    assert found[1] > 35
    assert found[1] > found[0] + 10


def test_a_pointwise_convolution_becomes_a_product(tmp_path: Path) -> None:
    torch.manual_seed(4)
    layer = nn.Conv2d(16, 24, 1)
    x = torch.randn(2, 16, 6, 6)
    model = layer_graph(layer, (2, 16, 6, 6))
    quantize(model, {"layer": Range(-5, 5)}, find_scheme("fbgemm"), keep=lambda product: None)
    assert "Conv" not in [node.op_type for node in model.graph]
    assert ratio(outputs(model, x.numpy(), tmp_path), layer(x).detach().numpy()) > 35


def test_what_stays_float_and_why() -> None:
    depthwise = layer_graph(nn.Conv2d(8, 8, 3, 1, 1, groups=8), (1, 8, 4, 4))
    assert quantize(depthwise, {}, find_scheme("fbgemm")).float32 == {"layer": (8 * 9 * 4, "patch embedding")}
    source = depthwise.graph.inputs[0]
    product = next(products(depthwise))
    depthwise.graph.inputs.pop()
    assert source.producer() is None
    assert kept_by_kind(product) == "depthwise"
    gate = next(products(layer_graph(nn.Conv2d(8, 4, 1), (1, 8, 1, 1))))
    assert gate.is_gate


def test_no_range_is_an_error() -> None:
    with pytest.raises(NotEnoughData, match="layer has no activation range"):
        quantize(layer_graph(nn.Linear(8, 8), (1, 8)), {}, find_scheme("fbgemm"))


def test_left_float_unasked_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmexport.quantize.static_int8._Pairs.quantize_weight", lambda *_: None)
    with pytest.raises(VlmExportError, match="1 layers stayed in float unasked: layer"):
        quantize(layer_graph(nn.Linear(8, 8), (1, 8)), {"layer": Range(-1, 1)}, find_scheme("fbgemm"))


def test_unknown_scheme() -> None:
    with pytest.raises(UsageError, match="no int8 scheme 'int9'"):
        find_scheme("int9")


@pytest.fixture
def outliers() -> tuple[dict[str, F32], F32]:
    """Weights and inputs [1, 400, 64] of a gated layer; two channels are 60 times the rest, as in Llamas' norms."""
    random = np.random.default_rng(5)
    norm = np.ones(64, np.float32)
    norm[[7, 40]] = 60
    weights = {"norm": norm, "gate": random.standard_normal((64, 96)), "up": random.standard_normal((64, 96))}
    weights["gate"][[7, 40]] /= 60
    weights["up"][[7, 40]] /= 60
    weights["up"][:, 11] *= 30
    weights["down"] = random.standard_normal((96, 48))
    arrays = {name: (array / (8 if name != "norm" else 1)).astype(np.float32) for name, array in weights.items()}
    return arrays, random.standard_normal((1, 400, 64)).astype(np.float32)


def statistics_of(weights: dict[str, F32], x: F32) -> Statistics:
    scaled = x[0] * weights["norm"]
    hidden = (scaled @ weights["gate"]) * (scaled @ weights["up"])
    return Statistics({"gate": observed(scaled), "up": observed(scaled), "down": observed(hidden)})


def test_smoothing_keeps_the_function(outliers: tuple[dict[str, F32], F32], tmp_path: Path) -> None:
    weights, x = outliers
    model, scheme = gated_graph(**weights), find_scheme("fbgemm")
    want = outputs(model, x, tmp_path)
    layers = statistics_of(weights, x).layers
    found = {}
    for group in list(groups(model, lambda product: None)):
        name = group.members[0].path
        span = activation_range(layers[name], "mse", scheme)
        choice = choose(group.weights, layers[name], span, scheme, bool(group.makers), Limits(-99, -99))
        assert choice is not None
        assert choice.scales is not None
        fold(group, choice.scales)
        found[name] = [maker.name for maker in group.makers]
    assert found["gate"] == ["norm.weight"]
    assert found["down"] in (["gate.weight"], ["up.weight"])
    np.testing.assert_allclose(outputs(model, x, tmp_path), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_outliers_are_survived(name: str, outliers: tuple[dict[str, F32], F32], tmp_path: Path) -> None:
    """What kernels make of it that saturate is what the instruction gives; the graph itself is right."""
    weights, x = outliers
    want = outputs(gated_graph(**weights), x, tmp_path)
    found, saturates = {}, kernels_here().saturates
    for smoothing, two in ((False, -99.0), (True, -99.0), (True, 32.0)):
        model = gated_graph(**weights)
        settings = Onnx(scheme=name, smooth=smoothing, twice_below_db=two)
        coverage = Int8(settings, statistics_of(weights, x)).quantize(model)
        assert coverage.share == 1.0
        got = outputs(model, x, tmp_path)
        same = np.isclose(got, simulate(model, x, saturates), rtol=1e-4, atol=1e-4).all(-1)
        assert same.mean() > 0.95  # in the other rows a value on the edge of a step takes the other one
        found[smoothing, two] = ratio(simulate(model, x, saturates=False) if saturates else got, want)
    assert found[True, -99.0] > found[False, -99.0] + 3
    assert found[True, 32.0] > 32


def test_a_hopeless_layer_stays_float(outliers: tuple[dict[str, F32], F32]) -> None:
    weights, x = outliers
    model = gated_graph(**weights)
    settings = Onnx(twice_below_db=999, float_below_db=999, float_layers=("ga*",))
    coverage = Int8(settings, statistics_of(weights, x), {"up": "its encoder"}).quantize(model)
    assert coverage.float32["gate"][1] == "recipe"
    assert coverage.float32["up"][1] == "its encoder"
    assert coverage.float32["down"][1] == "its signal would drown in int8"
    assert coverage.share == 0.0


def test_the_prediction_is_near_the_truth(tmp_path: Path) -> None:
    torch.manual_seed(6)
    layer, scheme = nn.Linear(128, 64), find_scheme("fbgemm")
    x = np.random.default_rng(6).standard_normal((500, 128)).astype(np.float32)
    model, seen = layer_graph(layer, (500, 128)), observed(x)
    span = activation_range(seen, "mse", scheme)
    choice = choose([layer.weight.detach().numpy().T], seen, span, scheme, False, Limits(0, 0))
    assert choice is not None
    quantize(model, {"layer": span}, scheme)
    assert abs(ratio(outputs(model, x, tmp_path), layer(torch.from_numpy(x)).detach().numpy()) - choice.ratio) < 1.5
