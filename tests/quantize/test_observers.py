"""Ranges of activations: torch's own observer, and which objective each one meets."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from tests.quantize.graphs import F32, observed
from vlmexport.quantize.observers import OUTSIDE, activation_range, cosine_loss, squared_error
from vlmexport.quantize.ranges import Range
from vlmexport.quantize.schemes import find_scheme

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.ao.quantization import HistogramObserver

SCHEME = find_scheme("fbgemm")
SHAPE = (40000, 16)
OBSERVERS = ("minmax", "percentile", "histogram", "mse", "cosine")


def values(name: str) -> F32:
    random = np.random.default_rng(0)
    drawn = {
        "normal": random.standard_normal(SHAPE),
        "laplace": random.laplace(size=SHAPE),
        "long tails": random.standard_t(3, SHAPE),
        "one-sided": random.lognormal(0, 1, SHAPE),
    }[name]
    return drawn.astype(np.float32)


DRAWN = ("normal", "laplace", "long tails", "one-sided")


def loss_of(objective: str, x: F32, span: Range) -> float:
    loss = squared_error if objective == "mse" else cosine_loss
    flat = x.ravel().astype(np.float64)
    return float(loss(flat, np.ones(flat.size), np.array([span.low]), np.array([span.high]), SCHEME)[0])


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*[Rr]educe_range.*:UserWarning")
@pytest.mark.parametrize("name", DRAWN)
def test_histogram_is_torchs_search(name: str) -> None:
    x = values(name)
    oracle = HistogramObserver(dtype=torch.quint8, quant_min=0, quant_max=255)  # type: ignore[no-untyped-call]
    oracle(torch.from_numpy(x))
    scale, zero = (float(value) for value in oracle.calculate_qparams())
    span = activation_range(observed(x), "histogram", SCHEME)
    width = 255 * scale
    assert abs(span.low + zero * scale) < 0.02 * width
    assert abs(span.high - (255 - zero) * scale) < 0.02 * width


@pytest.mark.parametrize("objective", ["mse", "cosine"])
@pytest.mark.parametrize("name", DRAWN)
def test_a_search_beats_every_other_observer_at_what_it_searches_for(name: str, objective: str) -> None:
    x = values(name)
    layer = observed(x)
    loss = {observer: loss_of(objective, x, activation_range(layer, observer, SCHEME)) for observer in OBSERVERS}
    assert loss[objective] <= 1.02 * min(loss.values())
    assert loss[objective] < 0.99 * loss["minmax"]


@pytest.mark.parametrize("name", DRAWN)
def test_percentile_clips_the_part_it_says(name: str) -> None:
    x = values(name)
    span = activation_range(observed(x), "percentile", SCHEME)
    clipped = float(((x < span.low) | (x > span.high)).mean())
    assert clipped == pytest.approx(OUTSIDE if x.min() < 0 else OUTSIDE / 2, rel=0.3)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0])
def test_a_constant_input_has_a_range_with_zero_in_it(observer: str, constant: float) -> None:
    span = activation_range(observed(np.full((8, 4), constant, np.float32)), observer, SCHEME)
    assert span.low <= 0 <= span.high
    if observer != "cosine":  # which does not see a factor
        assert span.low - 1e-3 <= constant <= span.high + 1e-3
