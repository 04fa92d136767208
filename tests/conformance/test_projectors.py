"""Every projector, whatever the folder holds: shapes, names, GGUF mapping, and that one new file is enough."""

from __future__ import annotations

import math
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

import vlmexport.model.projector as folder
from tests.checkpoints import tiny_spec, write_checkpoint
from tests.conformance.parts import SCHEMES, measure
from tests.onnx_bundles import picture
from tests.prompts import ask
from vlmexport.artifact.onnx.trace import components
from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.costs.operations import count
from vlmexport.design import Design, specify
from vlmexport.errors import Unsupported
from vlmexport.model import load, plugins
from vlmexport.model.sketch import sketch
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint

EXAMPLES = [
    str(import_module(f"{folder.__name__}.{info.name}").EXAMPLE) for info in pkgutil.iter_modules(folder.__path__)
]

NEW_FILE = '''
"""Keeps every second patch, then one linear layer."""
import torch
from torch import nn
from vlmexport.errors import Unsupported

EXAMPLE = "every_second"


class EverySecond(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.proj = nn.Linear(spec.in_features, spec.out_features)

    def forward(self, features):
        return self.proj(features[:, ::2])


def build(spec):
    with torch.device("meta"):
        return EverySecond(spec)


def token_grid(spec):
    return 1, (spec.in_tokens + 1) // 2


def shapes(spec):
    return {"proj.weight": (spec.out_features, spec.in_features), "proj.bias": (spec.out_features,)}


def gguf(spec):
    raise Unsupported("libmtmd cannot hold every_second", "use an ONNX bundle")
'''


def spec_of(kind: str, grid: int = 24) -> ProjectorSpec:
    return ProjectorSpec(kind, 64, 256, grid**2)


@torch.inference_mode()
@pytest.mark.parametrize("kind", EXAMPLES)
def test_shapes(kind: str) -> None:
    spec = spec_of(kind)
    plugin = plugins.projector(spec)
    module = plugin.build(spec).to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = module(torch.randn(2, spec.in_tokens, spec.in_features))
    assert tokens.shape == (2, plugins.num_tokens(spec), spec.out_features)
    one = module(torch.randn(1, spec.in_tokens, spec.in_features))
    assert one.shape[1] == plugins.num_tokens(spec)


@pytest.mark.parametrize("kind", [*EXAMPLES, "mlp3x_gelu", "mlp2x_relu96", "mlp1x_relu8", "mlp3x_gelu40"])
def test_shapes_are_those_of_the_module(kind: str) -> None:
    spec = spec_of(kind)
    plugin = plugins.projector(spec)
    assert plugin.shapes(spec) == {name: tuple(value.shape) for name, value in plugin.build(spec).state_dict().items()}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_gguf_holds_every_tensor_or_says_why_not(kind: str) -> None:
    spec = spec_of(kind)
    plugin = plugins.projector(spec)
    try:
        mapping = plugin.gguf(spec)
    except Unsupported as error:
        assert error.cure
        return
    assert set(mapping.tensors) == set(plugin.build(spec).state_dict())
    assert len(set(mapping.tensors.values())) == len(mapping.tensors)
    assert all(name.startswith("mm.") for name in mapping.tensors.values())
    assert mapping.f16 <= set(mapping.tensors)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_five_stages(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", tiny_spec(kind)))
    reference = ReferenceRuntime(checkpoint)
    features = reference.features(reference.pixels(picture(0)))
    tokens = reference.tokens(features)
    prompt = ask(reference, "what?", len(tokens))
    logits = reference.logits(prompt, [tokens], 0)
    assert [view.shape for view in features.views] == [(576, 64)]
    assert logits.shape == (1, len(prompt.ids), 384)
    first = next(reference.generate(prompt, [tokens], 4))
    assert first.id == int(logits[0, -1].argmax())


@pytest.mark.parametrize("kind", ["ldpnet", "ldpnetv2"])
def test_gguf_refuses_other_grids(kind: str) -> None:
    with pytest.raises(Unsupported, match="24x24"):
        plugins.projector(spec_of(kind, 12)).gguf(spec_of(kind, 12))


def test_gguf_refuses_a_deeper_mlp() -> None:
    with pytest.raises(Unsupported, match="mlp3x_gelu"):
        plugins.projector(spec_of("mlp3x_gelu")).gguf(spec_of("mlp3x_gelu"))


def test_ldpnetv2_refuses_a_grid_that_does_not_divide() -> None:
    with pytest.raises(Unsupported, match="do not divide"):
        plugins.projector(spec_of("ldpnetv2", 16)).build(spec_of("ldpnetv2", 16))


@pytest.mark.parametrize("kind", ["concat_mlp", "pool", "pool_max", "pixel_shuffle"])
def test_pairs_refuse_an_odd_grid(kind: str) -> None:
    plugin = plugins.projector(spec_of(kind, 7))
    for size in (plugin.build, plugin.token_grid):
        with pytest.raises(Unsupported, match=r"49 of them \(7x7\) do not divide: use .* 6x6 or 8x8"):
            size(spec_of(kind, 7))


@pytest.mark.parametrize(("kind", "cure"), [("bottleneck_transformer60", "of 8"), ("qformer8x100", "of 64")])
def test_heads_refuse_a_width_that_does_not_divide(kind: str, cure: str) -> None:
    with pytest.raises(Unsupported, match=f"do not divide: use a multiple {cure}"):
        plugins.projector(spec_of(kind)).build(spec_of(kind))


@pytest.mark.parametrize(("kind", "tokens"), [("qformer", 96), ("qformer12", 12), ("bottleneck_transformer", 576)])
def test_usual_sizes(kind: str, tokens: int) -> None:
    plugin = plugins.projector(spec_of(kind))
    assert plugins.num_tokens(spec_of(kind)) == tokens
    width = {"qformer": 768, "qformer12": 768, "bottleneck_transformer": 512}[kind]
    assert plugin.shapes(spec_of(kind))["layers.1.self_attn.q_proj.weight"] == (width, width)


def test_an_unknown_projector_lists_the_known() -> None:
    with pytest.raises(Unsupported, match=r"unknown projector 'nope'.*ldpnetv2.*mlp2x_gelu"):
        plugins.projector(spec_of("nope"))


def test_a_new_projector_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins_folder = tmp_path / "plugins"
    plugins_folder.mkdir()
    (plugins_folder / "every_second.py").write_text(NEW_FILE)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(plugins_folder)])
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", tiny_spec("every_second")))
    vlm = load(checkpoint)
    with torch.inference_mode():
        tokens = vlm.tokens(vlm.features(torch.zeros(1, 3, 336, 336)))
    assert tokens.shape == (1, 288, 256)
    with pytest.raises(Unsupported, match="every_second"):
        plugins.projector(checkpoint.spec.projector).gguf(checkpoint.spec.projector)


@pytest.mark.parametrize("kind", [*EXAMPLES, "quantized_qnnpack"])
def test_operations_are_counted_without_weights(kind: str) -> None:
    """Two for each value of the largest matrix at least, for each visual token."""
    spec = specify(Design("clip:tiny", kind, "llama:tiny", image_size=168))
    plugin = plugins.projector(spec.projector)
    matrices = [shape for shape in plugin.shapes(spec.projector).values() if len(shape) > 1]
    least = 2 * max(shape[0] * shape[1] for shape in matrices)
    assert count(spec).projector >= least * plugins.num_tokens(spec.projector)
    if kind.startswith("quantized"):
        assert count(spec).projector == 2 * spec.projector.in_tokens * math.prod(matrices[0])


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.slow
def test_onnx_in_float_and_int8(kind: str, tmp_path: Path) -> None:
    vlm = sketch(specify(Design("clip:tiny", kind, "llama:tiny", image_size=168)), 1, ("vision", "projector"))
    spec, random = vlm.spec.projector, torch.Generator().manual_seed(0)
    features, probe = (torch.randn(2, spec.in_tokens, spec.in_features, generator=random) for _ in range(2))
    found = measure(vlm, components.trace_projector(vlm), (features,), (probe,), tmp_path)
    assert found.apart < getattr(plugins.projector(spec), "TOLERANCE", 2e-5)
    for scheme in SCHEMES:
        if kind.startswith("quantized"):  # it is int8 already
            assert not found.coverage[scheme].int8
            assert found.sqnr[scheme] > 100
            continue
        assert {reason for _, reason in found.coverage[scheme].float32.values()} <= {"depthwise", "gate"}
        assert found.coverage[scheme].share > 0.7  # gates stay in float, and are much of a projector this narrow
        assert found.sqnr[scheme] > 15
