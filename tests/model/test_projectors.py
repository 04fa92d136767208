"""Projectors against small references of their own: torch's modules, the published code's steps, or loops."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.artifact.onnx.read.int8_layers import int8_products
from vlmexport.artifact.onnx.session import open_session, run
from vlmexport.artifact.onnx.trace import components
from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.design import Design, specify
from vlmexport.model import plugins
from vlmexport.model.fake_quantize import symmetric
from vlmexport.model.random_weights import randomise
from vlmexport.model.sketch import sketch
from vlmexport.runtime.ort.int8_kernels import kernels_here

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.ao import quantization as ao

IN, OUT, GRID = 32, 48, 6
State = dict[str, torch.Tensor]


def projector(kind: str) -> tuple[nn.Module, State]:
    """A projector of random weights, and its state."""
    spec = ProjectorSpec(kind, IN, OUT, GRID**2)
    module = plugins.projector(spec).build(spec)
    randomise(module, torch.Generator().manual_seed(0))
    return module.eval(), module.state_dict()


def features(images: int = 3) -> torch.Tensor:
    return torch.randn(images, GRID**2, IN, generator=torch.Generator().manual_seed(1))


def linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.shape == want.shape
    assert float((got - want).norm() / want.norm()) < 1e-5


def square(x: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """f32 [images, 4, width]: the 2x2 features whose first lies at twice these."""
    places = [(2 * row + i) * GRID + 2 * column + j for i in (0, 1) for j in (0, 1)]
    return x[:, places]


def test_mlp_of_relu_with_a_hidden_width() -> None:
    module, state = projector("mlp3x_relu40")
    x = linear(features(), state, "0").clamp(min=0)
    assert x.shape[-1] == 40
    assert_near(module(features()), linear(linear(x, state, "2").clamp(min=0), state, "4"))


def test_mlp_of_gelu_with_a_hidden_width() -> None:
    module, state = projector("mlp2x_gelu128")
    assert_near(module(features()), linear(functional.gelu(linear(features(), state, "0")), state, "2"))


def multihead(state: State, place: str, width: int, source: int) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    found = nn.MultiheadAttention(width, width // 64 or 8, batch_first=True, kdim=source, vdim=source)
    parts = [f"{place}.{part}_proj" for part in ("q", "k", "v")]
    weights = [state[f"{part}.weight"] for part in parts]
    with torch.no_grad():
        if source == width:
            found.in_proj_weight.copy_(torch.cat(weights))
        else:
            for name, weight in zip(("q", "k", "v"), weights, strict=True):
                getattr(found, f"{name}_proj_weight").copy_(weight)
        found.in_proj_bias.copy_(torch.cat([state[f"{part}.bias"] for part in parts]))
        found.out_proj.weight.copy_(state[f"{place}.out_proj.weight"])
        found.out_proj.bias.copy_(state[f"{place}.out_proj.bias"])
    return found.eval()


@torch.no_grad()
def test_bottleneck_transformer_is_torchs_encoder_layers() -> None:
    module, state = projector("bottleneck_transformer32")
    x = linear(features(), state, "linear_in")
    for place in ("layers.0", "layers.1"):
        layer = nn.TransformerEncoderLayer(32, 8, dropout=0.0, batch_first=True)
        layer.self_attn = multihead(state, f"{place}.self_attn", 32, 32)
        own = {name: state[f"{place}.{name}"] for name in layer.state_dict() if not name.startswith("self_attn")}
        layer.load_state_dict(own, strict=False)
        x = layer.eval()(x)
    assert_near(module(features()), linear(x, state, "linear_out"))


@torch.no_grad()
def test_qformer_is_self_attention_cross_attention_and_feed_forward() -> None:
    module, state = projector("qformer5x64")
    x = state["queries"].repeat(3, 1, 1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (64,), state[f"{name}.weight"], state[f"{name}.bias"])

    for place in ("layers.0", "layers.1"):
        x = norm(x + multihead(state, f"{place}.self_attn", 64, 64)(x, x, x)[0], f"{place}.norm1")
        cross = multihead(state, f"{place}.cross_attn", 64, IN)
        x = norm(x + cross(x, features(), features())[0], f"{place}.norm2")
        inner = functional.gelu(linear(x, state, f"{place}.fc1"))
        x = norm(x + linear(inner, state, f"{place}.fc2"), f"{place}.norm3")
    assert_near(module(features()), linear(x, state, "proj"))


def test_qformer_depends_on_the_image() -> None:
    module, _ = projector("qformer5x64")
    one, other, _ = module(features())
    assert float((one - other).norm() / one.norm()) > 0.05


def test_concat_mlp_takes_squares() -> None:
    module, state = projector("concat_mlp")
    rows = [square(features(), i, j).flatten(1) for i in range(GRID // 2) for j in range(GRID // 2)]
    assert_near(module(features()), linear(torch.stack(rows, 1), state, "proj"))


def test_pools_take_squares() -> None:
    for kind in ("pool", "pool_avg", "pool_max"):
        module, state = projector(kind)
        squares = [square(features(), i, j) for i in range(GRID // 2) for j in range(GRID // 2)]
        pooled = [x.amax(1) if kind == "pool_max" else x.mean(1) for x in squares]
        assert_near(module(features()), linear(torch.stack(pooled, 1), state, "proj"))


def test_pixel_shuffle_is_internvls() -> None:
    module, state = projector("pixel_shuffle")
    x = features().view(3, GRID, GRID, IN)  # what InternVL's function of this name does, step by step
    x = x.view(3, GRID, GRID // 2, 2 * IN).permute(0, 2, 1, 3).contiguous()
    x = x.view(3, GRID // 2, GRID // 2, 4 * IN).permute(0, 2, 1, 3).flatten(1, 2)
    x = functional.layer_norm(x, (4 * IN,), state["0.weight"], state["0.bias"])
    assert_near(module(features()), linear(functional.gelu(linear(x, state, "1")), state, "3"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*quantize_per.*deprecated.*")
@pytest.mark.filterwarnings("ignore:.*[Rr]educe_range.*:UserWarning")
@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
@torch.no_grad()
def test_quantized_is_torchs_static_int8_within_one_step(engine: str, tmp_path: Path) -> None:
    """The float model, and ONNX Runtime on what was traced from it, against torch's integer kernel.

    Both libraries compute without kernels that saturate; tests/quantize/test_oracle.py shows what those do.
    """
    spec = specify(Design("clip:tiny", f"quantized_{engine}", "llama:tiny", image_size=168))
    vlm = sketch(spec, 1, ("vision", "projector"))
    linear_ = nn.Linear(spec.projector.in_features, spec.projector.out_features)
    state = dict(linear_.state_dict())
    x = torch.randn(4, spec.projector.in_tokens, spec.projector.in_features) + 0.3
    before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
    try:
        oracle = ao.QuantWrapper(linear_).eval()
        oracle.qconfig = ao.get_default_qconfig(engine)
        ao.prepare(oracle, inplace=True)
        oracle(x)
        ao.convert(oracle, inplace=True)
        expected = oracle.module(oracle.quant(x))
    finally:
        torch.backends.quantized.engine = before
    steps = 127 if engine == "fbgemm" else 255
    spans = {
        "input_range": (float(oracle.quant.scale), int(oracle.quant.zero_point)),
        "output_range": (float(oracle.module.scale), int(oracle.module.zero_point)),
    }
    state |= {name: torch.tensor([-zero * scale, (steps - zero) * scale]) for name, (scale, zero) in spans.items()}
    vlm.projector.load_state_dict(state)
    traced = components.trace_projector(vlm)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in traced.model.graph}
    save(traced.model, tmp_path / "projector.onnx")
    (product,) = int8_products(tmp_path / "projector.onnx")
    assert product.can_saturate()
    session = open_session(tmp_path / "projector.onnx", exact=kernels_here().saturates)
    onnx = run(session, {"features": x.numpy()})["image_features"]
    for got in (vlm.tokens(x), torch.from_numpy(onnx).view(expected.shape)):
        apart = ((got - expected.dequantize()) / expected.q_scale()).round().abs()
        assert float(apart.max()) <= 1
        assert float((apart == 0).float().mean()) > 0.95


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_largest_weight_is_nowhere_between_two_steps(per_channel: bool) -> None:
    """There torch, which multiplies by the inverse of the scale, and ONNX Runtime, which divides, would part."""
    weight = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).half().float()
    rounded = torch.cat([symmetric(row[None], per_channel) for row in weight])
    steps = rounded / (weight.abs().amax(1, keepdim=True) / 127.5)
    assert steps.abs().amax(1).sub(127).abs().max() < 1e-3
    assert steps.sub(steps.round()).abs().max() < 1e-3
