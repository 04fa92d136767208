"""Every layer of a bundle is found by its name in the float model, and gives what the float model's gives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from torch import nn

from tests import gguf_bundles
from tests.onnx_bundles import Bundles, sample
from vlmexport.artifact.bundle.manifest import Manifest, read_manifest
from vlmexport.model import VLM, load
from vlmexport.parity.layers.divergence import differences
from vlmexport.parity.result import LayerDifference
from vlmexport.runtime.open import open_layers
from vlmexport.source.checkpoint import Checkpoint

COMPONENTS = {"vision", "projector", "language"}
QKV = {f"self_attn.{part}_proj" for part in "qkv"}
MISSING = {"int8": {"mlp.up_proj"}, "fp16": QKV, "int4": QKV}
"""Into up_proj the scales of down_proj are folded; q, k and v are one product where attention is fused."""


def found(bundle: Path, manifest: Manifest, checkpoint: Checkpoint, vlm: VLM) -> dict[str, float]:
    """Layer → NMSE."""
    layers: list[LayerDifference] = []
    for part in open_layers(bundle, manifest, checkpoint):
        with closing(part):
            layers += differences(part, vlm, checkpoint.prompts, sample(0))
    assert all(layer.note is None for layer in layers)
    assert len({layer.layer for layer in layers}) == len(layers)
    return {layer.layer: layer.nmse for layer in layers if layer.nmse is not None}


def products(vlm: VLM) -> set[str]:
    """Linear layers and convolutions that run: of the tower, those up to the layer that features are taken from."""
    used = vlm.spec.vision.used_layers
    left_out = tuple(f"vision.encoder.layers.{i}." for i in range(used, vlm.spec.vision.num_layers))
    kinds = (nn.Linear, nn.Conv2d)
    return {
        path for path, part in vlm.named_modules() if isinstance(part, kinds) and not path.startswith(left_out or "-")
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("fp32", 1e-11), ("fp16", 1e-6), ("int8", 0.05), ("int4", 0.1)])
def test_onnx(name: str, most: float, onnx_bundle: Bundles, short: Checkpoint) -> None:
    vlm, bundle = load(short), onnx_bundle(name)
    layers = found(bundle, read_manifest(bundle), short, vlm)
    assert layers.keys() >= COMPONENTS
    missing = {path.removeprefix("language.model.layers.0.") for path in products(vlm) - layers.keys()}
    assert missing <= MISSING.get(name, set())
    assert max(layers.values()) < most
    if name == "fp32":
        assert layers.keys() >= {"vision.pre_layrnorm", "language.model.norm", "vision.embeddings.position_embedding"}


@pytest.mark.slow
def test_gguf(tiny: Checkpoint, tmp_path: Path) -> None:
    vlm = load(tiny)
    manifest = gguf_bundles.export(tiny, tmp_path / "gguf", type="f32", mmproj_type="f32")
    layers = found(tmp_path / "gguf", manifest, tiny, vlm)
    convolutions = {path for path, part in vlm.named_modules() if isinstance(part, nn.Conv2d)}
    assert layers.keys() == (products(vlm) - convolutions) | COMPONENTS
    assert max(layers.values()) < 1e-5
    assert max(value for path, value in layers.items() if path.startswith("language")) < 1e-10
