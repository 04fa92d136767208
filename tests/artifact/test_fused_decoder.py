"""The decoder in ONNX Runtime's own operators against PyTorch with the same rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints import canonical_state, published, tiny_spec, write_checkpoint
from tests.onnx_bundles import picture, through_the_cache
from tests.prompts import as_inputs, ask
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.onnx.build import fused_decoder
from vlmexport.artifact.onnx.passes.clean import save
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.model import VLM, load
from vlmexport.pipeline import export
from vlmexport.quantize import blocks
from vlmexport.recipe import resolve
from vlmexport.runtime.joined import join
from vlmexport.runtime.ort.halves import OrtHalves
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

IDS = [1, *range(3, 14)]


def rounded(checkpoint: Checkpoint, held: fused_decoder.Weights) -> VLM:
    """The float model with the weights that the graph holds."""
    vlm = load(checkpoint)
    for name, module in vlm.language.named_modules():
        if isinstance(module, nn.Linear):
            bits = held.head_bits if name == "lm_head" else held.bits
            if bits == 16:
                module.weight = nn.Parameter(module.weight.half().float(), requires_grad=False)
                continue
            columns, raw = module.weight.shape[1], module.weight.detach().reshape(-1).view(torch.uint8).numpy()
            parts = blocks.quantize(raw, "f32", columns, bits, held.block)
            values = blocks.dequantize(*parts, bits, columns)
            module.weight = nn.Parameter(torch.from_numpy(values), requires_grad=False)
    return vlm


@pytest.mark.parametrize(
    ("held", "language"),
    [
        (fused_decoder.Weights(32, accuracy=0), {}),
        (fused_decoder.Weights(64, accuracy=0), {"num_kv_heads": 2, "rope_theta": 5e5}),
        (fused_decoder.Weights(128, head_bits=4, accuracy=0), {"num_kv_heads": 1, "head_dim": 32}),
        (
            fused_decoder.Weights(16, accuracy=0),
            {"hidden_size": 192, "num_heads": 3, "num_kv_heads": 3, "intermediate_size": 488},
        ),
        (fused_decoder.HALF, {"num_kv_heads": 2}),
    ],
)
def test_equal_to_pytorch(held: fused_decoder.Weights, language: dict[str, int], tmp_path: Path) -> None:
    spec = tiny_spec("mlp2x_gelu", image_size=56, **language)
    dtype = torch.float32 if held is fused_decoder.HALF else torch.float16  # float16 would leave nothing to round
    state = published(canonical_state(spec, dtype=dtype))
    found = open_checkpoint(write_checkpoint(tmp_path / "tiny", spec, state=state))
    save(fused_decoder.build(found, held), tmp_path / "decoder.onnx")
    vlm = rounded(found, held)
    with torch.inference_mode():
        embeds = vlm.embed(IDS)
        expected = vlm.logits(as_inputs(embeds), 0).numpy()
    got = through_the_cache(tmp_path / "decoder.onnx", embeds, (7, 8, len(IDS)))
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("held", [fused_decoder.Weights(32, accuracy=0), fused_decoder.HALF])
def test_a_tied_head_is_the_embedding(held: fused_decoder.Weights, tmp_path: Path) -> None:
    found = open_checkpoint(
        write_checkpoint(tmp_path / "tiny", tiny_spec("mlp2x_gelu", image_size=56, tie_word_embeddings=True))
    )
    found.tensors["language"].pop("lm_head.weight", None)
    save(fused_decoder.build(found, held), tmp_path / "decoder.onnx")
    vlm = load(found)
    with torch.inference_mode():
        embeds = vlm.embed(IDS)
        expected = vlm.logits(as_inputs(embeds), 0).numpy()
    got = through_the_cache(tmp_path / "decoder.onnx", embeds, (7, 8, len(IDS)))
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.9


def test_weights_that_are_not_finite_are_refused(tiny: Checkpoint, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", tiny_spec("mlp2x_gelu", image_size=56))
    path, tensor = folder / "model.safetensors", open_checkpoint(folder).tensors["language"]["lm_head.weight"]
    with path.open("r+b") as file:
        file.seek(tensor.offset + 2 * 300)
        file.write(np.array([np.nan], np.float16).tobytes())
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds NaN or infinity, first in row 1"):
        save(fused_decoder.build(open_checkpoint(folder), fused_decoder.Weights(32)), tmp_path / "decoder.onnx")


def test_a_weight_beyond_float16_is_refused(tmp_path: Path) -> None:
    spec = tiny_spec("mlp2x_gelu", image_size=56, num_layers=1)
    state = published(canonical_state(spec, dtype=torch.float32))
    state["model.layers.0.mlp.up_proj.weight"][3, 5] = 1e5
    found = open_checkpoint(write_checkpoint(tmp_path / "tiny", spec, state=state))
    with pytest.raises(Unsupported, match=r"up_proj\.weight holds values so large that float16 cannot hold them"):
        save(fused_decoder.build(found, fused_decoder.HALF), tmp_path / "decoder.onnx")


@pytest.mark.slow
def test_rounding(short: Checkpoint, tmp_path: Path) -> None:
    """Three ways to round: other levels, each nearer to the float model's products than the one before."""
    errors = {}
    for rounding in ("nearest", "search", "gptq"):
        flags = {"onnx.rounding": rounding, "calibration.samples": 8}
        folder = export(str(short.path), resolve("onnx-fp32-int4", flags), tmp_path / rounding)
        assert not [path for path in folder.rglob("*") if "hessian" in path.name]
        runtime, reference = join(OrtHalves(folder, read_manifest(folder))), ReferenceRuntime(short)
        prompt = ask(runtime, "what is polite?")
        tokens = reference.tokens(reference.features(reference.pixels(picture(1))))
        difference = runtime.logits(prompt, [tokens], 0) - reference.logits(prompt, [tokens], 0)
        errors[rounding] = float(np.square(difference, dtype=np.float64).mean())
        runtime.close()
    assert errors["gptq"] < errors["search"] < errors["nearest"]
