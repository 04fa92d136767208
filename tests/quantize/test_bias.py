from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.quantize.graphs import layer_graph, observed, outputs
from vlmexport.calibrate import Statistics
from vlmexport.quantize.int8 import Int8
from vlmexport.recipe import Onnx


@pytest.mark.parametrize("scheme", ["fbgemm", "qnnpack-per-tensor"])
@pytest.mark.parametrize("smooth", [True, False])
def test_the_mean_output_is_the_float_models(scheme: str, smooth: bool, tmp_path: Path) -> None:
    """On inputs that stand far from zero, where rounded weights shift an output most."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    layer.weight.data[0] *= 20  # coarse steps for all, where there is one scale
    x = torch.randn(4000, 64) * 0.3 + torch.rand(64) * 3
    exact, rows = layer(x).detach().numpy(), x.numpy()
    shifts = []
    for corrected in (False, True):
        settings = Onnx(scheme=scheme, bias_correction=corrected, smooth=smooth)
        model = layer_graph(layer, ("rows", 64))
        int8 = Int8(settings, Statistics({"layer": observed(rows)}))
        coverage, done = int8.apply(model, int8.decide(model))
        assert coverage.share == 1.0
        assert done["bias_corrected"] == (["layer"] if corrected else [])
        shifts.append(float(np.abs((outputs(model, rows, tmp_path) - exact).mean(0)).mean()))
    assert shifts[1] < 0.2 * shifts[0]


def test_a_bias_that_others_read_stays() -> None:
    layer = nn.Linear(8, 8)
    model = layer_graph(layer, ("rows", 8))
    bias = model.graph.initializers["layer.bias"]
    second = model.graph.node(-1)
    model.graph.append(type(second)("", "Neg", [bias]))
    int8 = Int8(Onnx(bias_correction=True), Statistics({"layer": observed(np.ones((4, 8), np.float32))}))
    assert int8.apply(model, int8.decide(model))[1]["bias_corrected"] == []
    assert bias.const_value is not None
    np.testing.assert_array_equal(bias.const_value.numpy(), layer.bias.detach().numpy())
