"""One component alone: traced, compared with torch, and quantized by both targets' schemes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from tests.onnx_bundles import picture, recipe
from vlmexport.artifact.onnx.passes import fold_batch_norm
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.artifact.onnx.trace import compare
from vlmexport.artifact.onnx.trace.components import Inputs, Traced
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.statistics import Statistics
from vlmexport.model import VLM, plugins
from vlmexport.quantize.int8 import Int8
from vlmexport.quantize.ranges import F32
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.static_int8 import Coverage
from vlmexport.runtime.ort.int8_kernels import kernels_here

SCHEMES = ("fbgemm", "qnnpack")


@dataclass
class Measured:
    """``apart``: relative difference of the float graph; by scheme: ``sqnr`` in decibels, ``coverage`` of layers."""

    apart: float
    sqnr: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, Coverage] = field(default_factory=dict)


def pixels(vlm: VLM, seeds: range) -> torch.Tensor:
    """Pictures as the encoder's own preprocessing makes them."""
    return torch.cat([vlm.pixels(picture(seed)) for seed in seeds])


def measure(vlm: VLM, traced: Traced, calibration: Inputs, probe: Inputs, folder: Path) -> Measured:
    """Compare as it was traced and with batch norms folded; quantize that, and compare on ``probe``.

    Where this machine's kernels saturate, products with U8 inputs are computed in float from their integers.
    """
    path = folder / "float.onnx"
    save(traced.model, path)
    apart = compare.check(traced, path)
    if fold_batch_norm.fold(traced.model):
        save(traced.model, path)
        apart = max(apart, compare.check(traced, path))
    with Recorder(vlm) as recorder, torch.inference_mode():
        traced.module(*calibration)
    statistics, kept = Statistics(dict(sorted(recorder.layers.items())), ("0",)), plugins.float_layers(vlm.spec.vision)
    expected = _first_output(path, probe)
    found = Measured(apart)
    for scheme in SCHEMES:
        model = ir.load(path)
        found.coverage[scheme] = Int8(recipe("int8", scheme).onnx, statistics, kept).quantize(model)
        save(model, folder / f"{scheme}.onnx")
        saturates = kernels_here().saturates and not find_scheme(scheme).signed
        got = _first_output(folder / f"{scheme}.onnx", probe, exact=saturates)
        noise = float(np.square(got - expected).mean() / np.square(expected - expected.mean()).mean())
        found.sqnr[scheme] = -10 * float(np.log10(max(noise, 1e-12)))
    return found


def _first_output(path: Path, probe: Inputs, exact: bool = False) -> F32:
    session = open_session(path, exact=exact)
    names = [value.name for value in session.get_inputs()]
    found: F32 = next(iter(run(session, dict(zip(names, compare.flat(probe), strict=True))).values()))
    return found
