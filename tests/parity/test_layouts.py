"""Float bundles of each layout against the float model, stage by stage; and the float model against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlamaTokenizer, LlavaConfig, LlavaForConditionalGeneration

from tests.checkpoints import (
    canonical_state,
    config_of,
    hf_config,
    hf_new,
    hf_old,
    original,
    original_bare,
    published,
    tiny_spec,
    write_checkpoint,
    write_clip,
    write_json,
    write_preprocessor,
    write_tokenizer,
)
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.calibrate import Sample
from vlmexport.checkpoint.spec import Spec
from vlmexport.errors import Unsupported
from vlmexport.model import load
from vlmexport.parity.compare.over_samples import Comparison
from vlmexport.parity.gates import judge
from vlmexport.parity.reference.values import Live
from vlmexport.pipeline import export
from vlmexport.recipe import resolve
from vlmexport.runtime.open import open_runtime
from vlmexport.runtime.reference import ReferenceRuntime
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.source.locate import open_model

LLAVA = {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
MARKS = {"<im_patch>": 384, "<im_start>": 385, "<im_end>": 386}


def short_spec(projector: str = "mlp2x_gelu", **vision: Any) -> Spec:
    """One decoder layer; a vocabulary padded beyond the tokenizer's 384 pieces."""
    spec = tiny_spec(projector, vocab_size=448, num_layers=1)
    spec = replace(spec, vision=replace(spec.vision, **vision))
    return replace(spec, projector=replace(spec.projector, in_tokens=spec.vision.num_patches))


def v1(folder: Path) -> tuple[Path, Path | None]:
    """MobileVLM V1, its tower in its own folder."""
    spec = short_spec("ldpnet")
    state = canonical_state(spec)
    tower = write_clip(folder / "clip", spec, state.pop("vision"))
    return write_checkpoint(folder / "v1", spec, state=published(state), pieces=384), tower


def llava(folder: Path) -> tuple[Path, Path | None]:
    """LLaVA-1.5's own layout in shards of float32, its tower without ``vision_model.``."""
    spec = short_spec()
    state = published(canonical_state(spec, dtype=torch.float32), original_bare)
    return write_checkpoint(folder / "llava", spec, state=state, pieces=384, shards=2, **LLAVA), None


def llava_hf(folder: Path, naming: Callable[[str, str], str] = hf_new) -> tuple[Path, Path | None]:
    """LLaVA-1.5 of transformers: ``<image>`` and ``<pad>`` added, centre crop."""
    spec = short_spec(select_layer=-1)
    state = published(canonical_state(spec), naming)
    path = write_checkpoint(folder / "hf", spec, state=state, pieces=384, config=hf_config(spec))
    write_preprocessor(path, spec)
    decoder = {str(i): {"content": text, "special": True} for i, text in ((384, "<image>"), (385, "<pad>"))}
    write_json(path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": "<pad>"})
    return path, None


def marked(folder: Path) -> tuple[Path, Path | None]:
    """An image between ``<im_start>`` and ``<im_end>``, ``tokenizer.json`` alone, a layer earlier, bfloat16, no pad."""
    spec = short_spec("ldpnetv2", select_layer=-3)
    state = published(canonical_state(spec, dtype=torch.bfloat16), original)
    changes = {"mm_use_im_start_end": True, "mm_use_im_patch_token": True, "image_aspect_ratio": "square"}
    path = write_checkpoint(folder / "marked", spec, state=state, pieces=384, kind="bin", **changes)
    legacy_json(path)
    write_json(path / "added_tokens.json", MARKS)
    write_json(path / "special_tokens_map.json", {"additional_special_tokens": list(MARKS)})
    return path, None


def legacy_json(path: Path) -> None:
    """``tokenizer.json`` in place of ``tokenizer.model``."""
    LlamaTokenizer.from_pretrained(path).save_pretrained(path)
    document = json.loads((path / "tokenizer.json").read_text())
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    document |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}
    write_json(path / "tokenizer.json", document)
    (path / "tokenizer_config.json").unlink()
    (path / "tokenizer.model").unlink()


def linear(folder: Path) -> tuple[Path, Path | None]:
    """LLaVA with one linear layer, and the class token kept."""
    spec = short_spec("linear", select_feature="cls_patch")
    path = write_checkpoint(folder / "linear", spec, state=published(canonical_state(spec)), pieces=384, **LLAVA)
    return path, None


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
            assert runtime.prompt(question) == checkpoint.tokenizer.prompt(template, question)
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
    ours, prompt = load(checkpoint), checkpoint.tokenizer.prompt(checkpoint.spec.prompt, "what is it?")
    pixels = torch.randn(1, 3, 56, 56)
    image = [384] * checkpoint.spec.vision.num_patches
    ids = torch.tensor([[*prompt.before, *image, *prompt.after]])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        found = ours.logits(ours.prompt_embeds(prompt, ours.tokens(ours.features(pixels))))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def rename(folder: Path, naming: Callable[[str, str], str]) -> None:
    """Give a saved LLaVA the names of another version of transformers."""
    from safetensors.torch import load_file, save_file

    components = open_checkpoint(folder).tensors
    canonical = {tensor.name: (part, name) for part, found in components.items() for name, tensor in found.items()}
    state = load_file(folder / "model.safetensors")
    save_file({naming(*canonical[name]): value for name, value in state.items()}, folder / "model.safetensors")
