"""A plan against what is then written."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from tests.gguf_bundles import export, random_statistics
from tests.onnx_bundles import Bundles, recipe
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.artifact.onnx.sizes import vision_sizes
from vlmexport.design import Design, create
from vlmexport.flags import vision_flags
from vlmexport.plan import plan
from vlmexport.recipe import parse, resolve, shipped
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint
from vlmexport.source.locate import open_model


def size(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files)


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_m", "f16", "q8_0"])
def test_gguf_to_the_byte(kind: str, tiny: Checkpoint, tmp_path: Path) -> None:
    written = export(tiny, tmp_path / "bundle", type=kind)
    settings = parse({"format": "gguf", "gguf": {"type": kind, "imatrix": "none"}}, "test")
    assert plan(tiny, [settings])[0].bytes == size(written)


def test_gguf_with_an_importance_matrix(tiny: Checkpoint, tmp_path: Path) -> None:
    written = export(tiny, tmp_path / "bundle", random_statistics(tiny.spec.language), type="q4_0", imatrix="auto")
    settings = parse({"format": "gguf", "gguf": {"type": "q4_0", "imatrix": "auto"}}, "test")
    assert plan(tiny, [settings])[0].bytes == size(written)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4"])
def test_onnx_within_two_percent(name: str, short: Checkpoint, onnx_bundle: Bundles) -> None:
    precision = "int8" if name == "int8" else "fp32"
    chosen = recipe(precision, decoder=name if name in ("int4", "fp16") else precision)
    assert plan(short, [chosen])[0].bytes == pytest.approx(size(read_manifest(onnx_bundle(name))), rel=0.02)


def test_what_an_encoder_keeps_in_float_is_counted_so(tmp_path: Path) -> None:
    """FastViT's stem, downsampling and first stage, depthwise kernels and gates."""
    pytest.importorskip("timm", reason="timm is not installed")
    create(Design("fastvit:tiny", "mlp2x_gelu", "llama:tiny", image_size=128), tmp_path / "design")
    checkpoint = open_checkpoint(tmp_path / "design")
    int8 = re.compile(r"stages\.[1-4]\.blocks\.\d+\.(mlp\.fc[12]|token_mixer\.(qkv|proj))\.weight")
    shapes = [tensor.shape for name, tensor in checkpoint.tensors["vision"].items() if int8.fullmatch(name)]
    shapes += [tensor.shape for tensor in checkpoint.tensors["projector"].values() if len(tensor.shape) == 2]
    saved = sum(3 * prod(shape) - 5 * shape[0] for shape in shapes)  # a scale and a zero point for each output
    sizes = {name: vision_sizes(checkpoint, resolve(name).onnx)["vision_encoder"] for name in ("onnx-fp32", "onnx-x86")}
    nodes = (len(shapes) - 2) / 6 * (15_000 - 7_500)  # those of the tower
    assert len(shapes) == 16
    assert sizes["onnx-fp32"] - sizes["onnx-x86"] == pytest.approx(saved - nodes, abs=1)


def test_every_shipped_recipe_on_the_demo() -> None:
    plans = plan(open_model("demo"), map(resolve, shipped()))
    assert [found.recipe for found in plans] == shipped()
    assert not [found.refused for found in plans if found.refused]
    sizes = {found.recipe: found.bytes for found in plans}
    assert sizes["gguf-q4_0"] < sizes["gguf-q8_0"] < sizes["gguf-f16"] < sizes["gguf-f32"]
    assert sizes["onnx-fp32-int4"] < sizes["onnx-fp32-fp16"] < sizes["onnx-fp32"]


def test_what_gguf_cannot_hold(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path / "linear", tiny_spec("linear", image_size=56)))
    flags = vision_flags("onnx-fp32", None, "gguf-q8_0", "gguf-q8_0")
    gguf, onnx, hybrid = plan(found, [resolve("gguf-q8_0"), resolve("onnx-fp32"), resolve("gguf-q8_0", flags)])
    assert gguf.refused is not None
    assert "linear" in gguf.refused
    assert gguf.bytes == 0
    assert onnx.refused is None
    assert hybrid.refused is None
    assert [part.name for part in hybrid.parts] == ["language", "vision_encoder", "projector"]
