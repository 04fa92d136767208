"""What saturating kernels lose, and weights with which it is little: by an exact model of ``vpmaddubsw``, and run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.onnx_bundles import Bundles
from tests.quantize.graphs import layer_graph, observed, outputs
from tests.quantize.simulate import simulate, vpmaddubsw
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_layers
from vlmexport.calibrate import Statistics
from vlmexport.quantize.choice import Limits, choose, for_avx2
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.noise import decibels
from vlmexport.quantize.ranges import F32, Range, quantize_weight, weight_scales
from vlmexport.quantize.saturation import SAFE, lost
from vlmexport.quantize.schemes import Scheme, find_scheme
from vlmexport.recipe import Onnx, resolve

Integers = npt.NDArray[np.int64]
SCHEME = find_scheme("fbgemm")
U8 = [find_scheme(name).with_pairs(SAFE) for name in ("fbgemm", "qnnpack-per-tensor")]
LIMITS = Limits(-100.0, -100.0)


def hardest(weight: Integers) -> Integers:
    """Levels [2 · outputs, columns] that pull each output as far up and as far down as any can."""
    return np.concatenate([255 * (weight.T > 0), 255 * (weight.T < 0)])


def integers(weight: F32, scheme: Scheme) -> Integers:
    return quantize_weight(weight, weight_scales(weight, 1, scheme), 1, scheme).astype(np.int64)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.floats(0.1, 3), st.integers(1, 2)
)
def test_what_is_lost_equals_a_plain_model_of_the_instruction(
    count: int, columns: int, outputs: int, seed: int, spread: float, terms: int
) -> None:
    random = np.random.default_rng(seed)
    rows = (np.abs(random.standard_normal((count, columns))) * spread).astype(np.float32)
    weight = random.standard_normal((columns, outputs)).astype(np.float32)
    scales, multiplied = weight_scales(weight, 1, SCHEME), integers(weight, SCHEME)
    error, cut, rest, span = np.zeros((count, outputs)), 0, rows, Range(0.0, 1.0)
    for _ in range(terms):
        step, zero = span.parameters(SCHEME)
        levels = np.clip(np.round(rest / step) + zero, 0, 255).astype(int)
        for k in range(0, columns, 2):
            pair = levels[:, k : k + 2], multiplied[k : k + 2]
            cut += int((pair[0] @ pair[1] != vpmaddubsw(*pair)).sum())
        error += (levels @ multiplied - vpmaddubsw(levels, multiplied)) * scales * step
        rest, span = (rest - (levels - zero) * step).astype(np.float32), Range(-step / 2, step / 2)
    share, power = lost(rows, weight, Range(0.0, 1.0), SCHEME, terms)
    assert share == cut / (count * outputs * (columns + columns % 2) / 2 * terms)
    assert np.isclose(power, np.square(error).sum() / count, rtol=1e-4)


@pytest.mark.parametrize("scheme", U8, ids=lambda scheme: scheme.name)
@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 33), st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.0, 0.3, 1.0, 3.0, 9.0]),
    st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
@example(2, 1, 0, 0.0, 1.0)  # both of a pair as large as they can be
def test_safe_pairs_saturate_with_no_activations(
    scheme: Scheme, columns: int, outputs: int, seed: int, tails: float, size: float
) -> None:
    """Weights of one size (tails 0) up to few that tower over the rest."""
    random = np.random.default_rng(seed)
    weight = np.exp(tails * random.standard_normal((columns, outputs))) * random.choice([-1, 1], (columns, outputs))
    levels = integers((weight * size).astype(np.float32), scheme)
    np.testing.assert_array_equal(vpmaddubsw(hardest(levels), levels), hardest(levels) @ levels)


def test_rounding_lifts_no_pair_over_the_bound() -> None:
    """Pairs around every fraction, whose sum is as near to the bound as float32 has it."""
    large = np.linspace(64, 127.4, 4001)
    small = np.nextafter(np.float32(SAFE), np.float32(0)) - large
    assert np.abs(integers(np.stack([large, small]).astype(np.float32), U8[0]).sum(0)).max() == SAFE


def test_steps_grow_in_those_channels_alone_that_need_it() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    weight[7, :2], weight[6, :2] = 40, -1  # it sets the scale of two channels, and meets one of the other sign
    weight[8:10, 1] = 40  # two of one sign that meet
    plain, safe = (weight_scales(weight, 1, SCHEME.with_pairs(bound)) for bound in (None, SAFE))
    assert safe[0] == plain[0]
    assert safe[1] == pytest.approx(80 / SAFE)
    assert ((plain <= safe) & (safe <= 2 * plain)).all()
    np.testing.assert_array_equal(weight_scales(weight.T.copy(), 0, SCHEME.with_pairs(SAFE)), safe)
    kernels = np.ones((4, 8, 3, 3), np.float32)  # not multiplied as integers
    np.testing.assert_array_equal(*(weight_scales(kernels, 0, SCHEME.with_pairs(bound)) for bound in (None, SAFE)))


def test_a_bound_only_where_products_saturate() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((64, 32)).astype(np.float32)
    gentle = random.standard_normal((32, 8)).astype(np.float32)
    gentle[0] = 8  # what sets the scale; the others stay far below it
    harsh = np.repeat(np.sign(gentle[::2]), 2, 0)  # both of a pair pull the same way, as hard as they can
    layer, span = observed(rows), Range(float(rows.min()), float(rows.max()))
    for name, weight, saturates in (("fbgemm", gentle, False), ("fbgemm", harsh, True), ("qnnpack", harsh, False)):
        choice = choose([weight], layer, span, find_scheme(name), False, LIMITS)
        assert choice is not None
        found = for_avx2(choice, weight, layer)
        assert (found != choice) == saturates
        assert found == replace(choice, scheme=choice.scheme.with_pairs(found.scheme.pair_max))
        seen = layer.rows, weight, span
        assert lost(*seen, found.scheme)[1] <= 0.05 * lost(*seen, choice.scheme)[1]


@pytest.mark.parametrize("terms", [1, 2])
def test_a_layer_is_as_good_as_without_saturation(terms: int, tmp_path: Path) -> None:
    """By default, on inputs that calibration did not see: as this machine's kernels compute it, and as AVX2 does."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 128)
    layer.weight.data = torch.randn(128, 256)
    random = np.random.default_rng(terms)
    shift = np.where(random.random(256) < 0.5, 4.0, 0.0)  # channels far from zero, as norms have them
    rows = (random.standard_normal((2000, 256)) + shift).astype(np.float32)
    x = (random.standard_normal((1, 400, 256)) + shift).astype(np.float32)
    exact = layer(torch.from_numpy(x)).detach().numpy()
    two, statistics = (999.0 if terms == 2 else -99.0), Statistics({"layer": observed(rows)})
    found: dict[str, list[float]] = {}
    for saturation in ("none", "avx2"):
        model = layer_graph(layer, ("batch", 400, 256))
        chosen = {"twice_below_db": two, "float_below_db": -999.0, "smooth": False}
        chosen |= {} if saturation == "avx2" else {"saturation": saturation}
        coverage = Int8(Onnx(**chosen), statistics).quantize(model)
        assert coverage.share == 1.0
        assert (len(coverage.pair_max), len(coverage.twice)) == (saturation == "avx2", terms - 1)
        results = [outputs(model, x, tmp_path), *(simulate(model, x, saturates) for saturates in (False, True))]
        found[saturation] = [ratio(one, exact) for one in results]
    assert found["none"][1] - found["none"][2] > 5  # what is lost without bounds
    assert min(found["avx2"]) > found["none"][1] - 0.5
    # This machine computes one of the two that are simulated.
    assert all(min(abs(one[0] - one[1]), abs(one[0] - one[2])) < 0.02 for one in found.values())


def ratio(got: F32, want: F32) -> float:
    return decibels(float(np.square(want).mean()), float(np.square(got - want).mean()))


@pytest.mark.slow
def test_bounds_of_a_bundle_are_held_and_listed(onnx_bundle: Bundles) -> None:
    bundle, bounded = onnx_bundle("int8"), 0
    manifest = read_manifest(bundle)
    for graph, file in manifest.graphs().items():
        bounds = manifest.reports[graph].pair_max or {}
        for layer in int8_layers(bundle / file) if bounds else ():
            held, steps = layer.weight()
            levels = np.round(held / steps.reshape(-1, *[1] * (held.ndim - 1))).reshape(len(held), -1)
            if layer.path in bounds:
                even = levels.shape[1] // 2 * 2
                assert np.abs(levels[:, 0:even:2] + levels[:, 1:even:2]).max() <= bounds[layer.path], layer.path
                bounded += 1
    assert bounded > 0


@pytest.mark.parametrize("target", ["x86", "web"])
@pytest.mark.parametrize("decoder", ["", "-int4", "-fp16"])
def test_the_recipes_for_x86_and_the_web_ask_for_it(target: str, decoder: str) -> None:
    assert resolve(f"onnx-{target}{decoder}", environ={}).onnx.saturation == "avx2"
