"""Quantization-aware training rounds as the exported bundle does: the very weights, scales and zero points."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests import gguf_bundles
from tests.onnx_bundles import Bundles, open_exact, picture, recipe
from tests.prompts import ask
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.gguf.language import gguf_name
from vlmexport.artifact.gguf.rows import interleave
from vlmexport.artifact.onnx.read.int8_layers import int8_layers
from vlmexport.calibrate import Statistics
from vlmexport.console import QUIET
from vlmexport.errors import Unsupported, UsageError
from vlmexport.model import load
from vlmexport.pipeline import export_checkpoint
from vlmexport.quantize import blocks, ggml
from vlmexport.runtime.stages import Features
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint


@pytest.mark.slow
def test_int8_weights_and_inputs_are_the_bundles(onnx_bundle: Bundles, short: Checkpoint) -> None:
    from qat import FakeQuantization

    bundle, vlm = onnx_bundle("int8"), load(short, resident=True)
    qat, compared = FakeQuantization(bundle, short), set()
    with qat.applied(vlm):
        for graph in ("projector", "decoder_model_merged"):
            path = bundle / read_manifest(bundle).graphs()[graph]
            for layer in int8_layers(path):
                held, steps = layer.weight()
                name = f"{layer.path}.weight"
                folded = qat.weights[name].args[1]  # type: ignore[attr-defined]
                weight = vlm.get_parameter(name).numpy().reshape(held.shape) * folded
                ratio = np.divide(weight, held, out=np.full_like(held, np.nan), where=held != 0)
                scale = np.nanmedian(ratio, 1)  # what makes no difference to a row
                away = np.abs(weight / scale[:, None] - held) / steps[:, None]
                assert (away > 1e-2).mean() < 1e-3, name  # a row's largest value is midway between two levels
                compared.add(name)
                assert qat.inputs[layer.path].args[:2] == (layer.read, layer.terms)  # type: ignore[attr-defined]
    assert compared == set(qat.weights)
    assert len(compared) == 8 + 2  # the decoder's, and the projector's two linear layers
    original = load(short, resident=True).state_dict()
    assert all(torch.equal(value, original[name]) for name, value in vlm.state_dict().items())


@pytest.mark.slow
def test_int8_computes_what_onnxruntime_does(onnx_bundle: Bundles, short: Checkpoint) -> None:
    from qat import FakeQuantization

    bundle, vlm = onnx_bundle("int8"), load(short, resident=True)
    runtime = open_exact(bundle)
    prompt = ask(runtime, "what is the image ?")
    seen = runtime.features(runtime.pixels(picture(3)))
    features, tokens = torch.from_numpy(seen.rows[None]), runtime.tokens(Features(seen.views))
    expected = torch.from_numpy(runtime.logits(prompt, [tokens], 0))
    with torch.no_grad():
        inputs = vlm.inputs(prompt, [torch.from_numpy(tokens)])
        plain, visual = vlm.logits(inputs, 0), vlm.tokens(features)
        with FakeQuantization(bundle, short).applied(vlm):
            rounded, rounded_visual = vlm.logits(inputs, 0), vlm.tokens(features)
    # Not nearer: a weight midway between two levels moves inputs of later layers, and those over their own middles.
    assert (rounded - expected).norm() < 0.4 * (plain - expected).norm()
    assert (rounded_visual - torch.from_numpy(tokens)).norm() < 0.4 * (visual - torch.from_numpy(tokens)).norm()


def test_int4_weights_are_the_bundles(onnx_bundle: Bundles, short: Checkpoint) -> None:
    from qat import FakeQuantization

    bundle, vlm = onnx_bundle("int4"), load(short, resident=True)
    graph = onnx.load(bundle / read_manifest(bundle).decoding.file("decoder_model_merged"))
    held = {tensor.name: numpy_helper.to_array(tensor, str(bundle / "onnx")) for tensor in graph.graph.initializer}
    with FakeQuantization(bundle, short).applied(vlm):
        for name, bits in (("language.model.layers.0.mlp.down_proj", 4), ("language.lm_head", 8)):
            weight = vlm.get_parameter(f"{name}.weight").numpy()
            levels, scales = held[f"{name}.weight_int{bits}"], held[f"{name}.scales"]
            np.testing.assert_array_equal(weight, blocks.dequantize(levels, scales, bits, weight.shape[1]))


@pytest.mark.parametrize(("kind", "importance"), [("q2_k", False), ("q4_k_m", True)])
def test_gguf_weights_are_the_bundles(kind: str, importance: bool, short: Checkpoint, tmp_path: Path) -> None:
    from qat import FakeQuantization

    spec, bundle = short.spec.language, tmp_path / "bundle"
    statistics = gguf_bundles.random_statistics(spec) if importance else None
    manifest = gguf_bundles.export(
        short, bundle, statistics, type=kind, imatrix="auto" if importance else "none", mmproj_type="f16"
    )
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(bundle / manifest.decoding.file("language")).tensors}
    vlm, compared = load(short, resident=True), 0
    with FakeQuantization(bundle, short).applied(vlm):
        for name in short.tensors["language"]:
            tensor = file[gguf_name(spec, name)]
            weight = vlm.get_parameter(f"language.{name}").numpy()
            if weight.ndim == 1:
                continue
            heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2], 0)
            rows = interleave(weight, heads) if heads else weight
            data = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(len(rows), -1)
            kept = ggml.dequantize(data, tensor.tensor_type.name.lower(), rows.shape[1])
            np.testing.assert_array_equal(rows, kept.reshape(rows.shape), name)
            compared += 1
    assert compared == 9


@pytest.mark.slow
def test_training_for_a_bundle_loses_less_in_the_next_one(short: Checkpoint, tmp_path: Path) -> None:
    """The loss that training saw is that of the bundle which is exported from the result."""
    from qat import FakeQuantization
    from settings import Settings
    from training import Trainer, run

    first = tmp_path / "first"
    gguf_bundles.export(short, first, type="q2_k")
    chosen = Settings(
        str(short.path),
        tmp_path / "out",
        data="scenes:4",
        qat=first,
        steps=25,
        batch=4,
        rate=1e-3,
        threads=1,
        features=tmp_path / "features",
    )
    at_first = Trainer(chosen).advance()["answers"]
    after = open_checkpoint(run(chosen, QUIET))
    gguf_bundles.export(after, tmp_path / "second", type="q2_k")
    again = Settings(str(after.path), tmp_path / "again", data="scenes:4", qat=tmp_path / "second", batch=4, threads=1)
    assert Trainer(again).advance()["answers"] < 0.7 * at_first
    with pytest.raises(UsageError, match="other weights"):
        FakeQuantization(first, after)


def test_what_no_formula_tells_is_refused(short: Checkpoint, short_statistics: Statistics, tmp_path: Path) -> None:
    from qat import FakeQuantization

    chosen = recipe("fp32", decoder="int4", rounding="search")
    export_checkpoint(short, chosen, tmp_path / "searched", statistics=short_statistics)
    with pytest.raises(Unsupported, match="ROUNDING=nearest"):
        FakeQuantization(tmp_path / "searched", short)


def test_a_float_bundle_is_refused(onnx_bundle: Bundles, short: Checkpoint) -> None:
    from qat import FakeQuantization

    with pytest.raises(UsageError, match="rounds no weight"):
        FakeQuantization(onnx_bundle("fp16"), short)


def test_two_terms_are_finer_than_one() -> None:
    from rounding import _input

    from vlmexport.quantize.schemes import find_scheme

    x = torch.linspace(-100, 100, 1009, requires_grad=True)
    for name, zero in (("fbgemm", 128), ("qnnpack", 0)):
        one, two = (_input((202 / 255, zero), terms, None, find_scheme(name), x) for terms in (1, 2))
        assert 100 * (two - x).abs()[5:-5].max() < (one - x).abs()[5:-5].max()
        (gradient,) = torch.autograd.grad(two.sum(), x)
        assert gradient[3:-3].eq(1).all()
