"""Our Q/DQ graphs under ONNX Runtime against torch's own static int8 kernels, with the same ranges."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.quantize.graphs import fused, layer_graph, outputs
from tests.quantize.simulate import simulate
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import Scheme, find_scheme
from vlmexport.quantize.static_int8 import quantize
from vlmexport.runtime.ort.int8_kernels import kernels_here

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.ao import quantization as ao

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize_per.*deprecated.*"),
    pytest.mark.filterwarnings("ignore:.*[Rr]educe_range.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams:UserWarning"),
]

LAYERS = {
    "linear": (lambda: nn.Linear(192, 96), (64, 192)),
    "conv": (lambda: nn.Conv2d(16, 24, 3, 2, 1), (2, 16, 14, 14)),
    "depthwise": (lambda: nn.Conv2d(32, 32, 3, 1, 1, groups=32), (2, 32, 12, 12)),
}


def qconfig(scheme: Scheme) -> Any:
    """torch's configuration of a scheme. Its qnnpack takes no qint8 on x86: the same integers less 128 stand in."""
    weight: Any = ao.MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    if scheme.per_channel:
        weight = ao.PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
    bounds = {"quant_min": scheme.weight_min, "quant_max": scheme.weight_max}
    activation = ao.HistogramObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=scheme.steps)
    return ao.QConfig(activation=activation, weight=weight.with_args(**bounds))


def convert(layer: nn.Module, x: torch.Tensor, engine: str, config: Any) -> Any:
    """torch's module after calibration on one batch."""
    torch.backends.quantized.engine = engine
    model = ao.QuantWrapper(layer).eval()
    model.qconfig = config
    ao.prepare(model, inplace=True)
    model(x)
    return ao.convert(model)


@pytest.fixture(autouse=True)
def _engine() -> Any:
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before


@cache
def exact_engine(engine: str) -> str:
    """The engine, or torch's other one where kernels of this one saturate: qnnpack's add in 32 bits on any machine."""
    torch.backends.quantized.engine = engine
    layer = nn.Linear(2, 1)
    torch.nn.init.ones_(layer.weight)
    product = convert(layer, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), engine, qconfig(find_scheme("fbgemm")))
    sums = product.module(product.quant(torch.ones(1, 2))).dequantize()
    return engine if float(sums) > 0.75 * float(layer(torch.ones(1, 2)).detach()) else "qnnpack"


REDUCED = replace(find_scheme("fbgemm"), activation_max=127)
"""torch's own ``reduce_range``."""
SCHEMES = {
    "fbgemm": ("fbgemm", find_scheme("fbgemm")),
    "fbgemm-reduced": ("fbgemm", REDUCED),
    "qnnpack": ("qnnpack", find_scheme("qnnpack")),
    "qnnpack-per-tensor": ("qnnpack", find_scheme("qnnpack-per-tensor")),
}


def steps_apart(kind: str, engine: str, scheme: Scheme, path: Path) -> torch.Tensor:
    """Steps of torch's output scale between our output and torch's, at every value.

    Where the kernels of this machine saturate, ours is computed by exact integers; what ONNX Runtime makes of it there
    is what the instruction gives.
    """
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    layer, x = build().eval(), torch.randn(shape) * 1.5 + 0.3
    oracle = convert(layer, x, engine, qconfig(scheme))
    expected = oracle.module(oracle.quant(x))
    scale, zero = float(oracle.quant.scale), int(oracle.quant.zero_point)
    # A free dimension more, as layers of a model have it: with none ONNX Runtime computes the layer in float.
    model = layer_graph(layer, ("batch", *shape) if kind == "linear" else shape)
    span = Range(-zero * scale, (scheme.steps - zero) * scale)
    coverage = quantize(model, {"layer": span}, scheme, keep=lambda product: None)
    assert coverage.share == 1.0
    given = x[None].numpy() if kind == "linear" else x.numpy()
    got = outputs(model, given, path)
    if kind == "linear":
        assert "MatMulIntegerToFloat" in fused(path / "graph.onnx", path)
        np.testing.assert_allclose(got, simulate(model, given, kernels_here().saturates), atol=1e-5)
        got = simulate(model, given, saturates=False) if kernels_here().saturates else got
    levels = torch.round(torch.from_numpy(got.copy()).view(expected.shape) / expected.q_scale())
    return (torch.clamp(levels + expected.q_zero_point(), 0, scheme.steps) - expected.int_repr()).abs()


# fbgemm's depthwise kernel saturates at full range: the test below.
PAIRS = [(kind, name) for kind in LAYERS for name in SCHEMES if (kind, name) != ("depthwise", "fbgemm")]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_within_one_step_of_torch(kind: str, name: str, tmp_path: Path) -> None:
    engine, scheme = SCHEMES[name]
    steps = steps_apart(kind, exact_engine(engine), scheme, tmp_path)
    assert float((steps <= 1).float().mean()) >= 0.999
    assert float((steps == 0).float().mean()) >= 0.95


def test_depthwise_of_fbgemm_saturates_at_full_range(tmp_path: Path) -> None:
    """Why torch narrows fbgemm's activations. Our depthwise layers are float; with VNNI no other kernel saturates."""
    steps = steps_apart("depthwise", *SCHEMES["fbgemm"], tmp_path)
    if float((steps <= 1).float().mean()) >= 0.999:
        pytest.skip("this machine's depthwise kernel does not saturate")
    assert float(steps.max()) > 4


def test_narrow_activations_cost_accuracy_and_buy_nothing_here(tmp_path: Path) -> None:
    """Why ``fbgemm`` keeps 0…255: torch's kernel agrees with both, and the narrow one is 6 dB worse."""
    torch.manual_seed(1)
    layer, x = nn.Linear(256, 128).eval(), torch.randn(128, 256)
    exact = layer(x).detach().numpy()
    noise = {}
    for scheme in (find_scheme("fbgemm"), REDUCED):
        model = layer_graph(layer, (128, 256))
        quantize(model, {"layer": Range(float(x.min()), float(x.max()))}, scheme, keep=lambda product: None)
        got = outputs(model, x.numpy(), tmp_path)
        noise[scheme.steps] = float(np.square(got - exact).mean())
    assert noise[127] > 2 * noise[255]
