"""Float bundles of each layout against the float model, stage by stage; and the float model against transformers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.checkpoints import (
    config_of,
    hf_new,
    hf_old,
    write_json,
    write_tokenizer,
)
from tests.layouts import LLAVA, linear, llava, llava_hf, marked, short_spec, v1
from tests.prompts import ask, tokenized, with_image
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.errors import Unsupported
from vlmexport.measures.gates import judge
from vlmexport.model import load
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.reference.values import Live
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import open_model

Write = Callable[[Path], tuple[Path, Path | None]]
GGUF: tuple[Write, ...] = (v1, llava, llava_hf, marked)
ONNX: tuple[Write, ...] = (v1, llava_hf, marked, linear)


def samples(count: int = 3) -> list[Sample]:
    """Questions about square pictures, which padding and cropping leave alone."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (7, 7, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC)
        found.append(Sample(f"{i}", f"{i}", "what is the chat ?", lambda image=image: image, answer="a chat"))
    return found


def assert_parity(recipe_name: str, write: Write, folder: Path) -> None:
    recipe = resolve(recipe_name, environ={})
    path, tower = write(folder)
    bundle = export(str(path), recipe, folder / "out", vision_tower=str(tower) if tower else None)
    manifest = read_manifest(bundle)
    checkpoint = open_model(manifest.source.path, manifest.source.vision_tower)
    with closing(open_runtime(bundle, manifest)) as runtime:
        comparison = Comparison(Live(ReferenceRuntime(checkpoint)), runtime)
        comparison.run(samples())
        template = checkpoint.spec.prompt
        for question in ("what is <im_patch> Ü?", " two  spaces"):
            assert ask(runtime, question) == tokenized(checkpoint.tokenizer, template, question)
    failed = [gate for gate in judge(recipe.gates, comparison.measured.stages()) if not gate.passed]
    assert not failed, failed


@pytest.mark.slow
@pytest.mark.parametrize("write", GGUF, ids=lambda write: write.__name__)
def test_gguf(write: Write, tmp_path: Path) -> None:
    assert_parity("gguf-f32", write, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("write", ONNX, ids=lambda write: write.__name__)
def test_onnx(write: Write, tmp_path: Path) -> None:
    assert_parity("onnx-fp32", write, tmp_path)


def test_gguf_refuses_what_libmtmd_cannot_hold(tmp_path: Path) -> None:
    path, _ = linear(tmp_path)
    recipe = resolve("gguf-f32", environ={})
    with pytest.raises(Unsupported, match="cls_patch"):
        export(str(path), recipe, tmp_path / "out")
    write_json(path / "config.json", config_of(short_spec("linear")) | LLAVA)
    with pytest.raises(Unsupported, match=r"linear projector.*ONNX"):
        export(str(path), recipe, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["linear"]


@pytest.mark.parametrize(("strategy", "layer"), [("default", -2), ("full", -1)])
@pytest.mark.parametrize("saved", ["as transformers saves it", "new names", "old names"])
def test_the_float_model_is_transformers_llava(saved: str, strategy: str, layer: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=1, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=448, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=384, vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )  # fmt: skip
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    if saved != "as transformers saves it":
        rename(tmp_path, hf_new if saved == "new names" else hf_old)
    write_tokenizer(tmp_path, 384)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.spec.layout == "llava-hf"
    ours, prompt = (
        load(checkpoint),
        tokenized(checkpoint.tokenizer, checkpoint.spec.prompt, "what is it?", checkpoint.spec.vision.num_patches),
    )
    pixels = torch.randn(1, 3, 56, 56)
    ids = torch.tensor([with_image(prompt, *[384] * checkpoint.spec.vision.num_patches)])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        found = ours.logits(ours.inputs(prompt, ours.tokens(ours.features(pixels))), 0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def rename(folder: Path, naming: Callable[[str, str], str]) -> None:
    """Give a saved LLaVA the names of another version of transformers."""
    from safetensors.torch import load_file, save_file

    components = open_checkpoint(folder).tensors
    canonical = {tensor.name: (part, name) for part, found in components.items() for name, tensor in found.items()}
    state = load_file(folder / "model.safetensors")
    save_file({naming(*canonical[name]): value for name, value in state.items()}, folder / "model.safetensors")
