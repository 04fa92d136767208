"""Every published layout is recognised without flags: the right Spec, and the source's tensors by canonical names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import (
    Naming,
    State,
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
)
from vlmexport.checkpoint.spec import ImageProcessorSpec, Spec, VisionSpec
from vlmexport.errors import CheckpointError, Unsupported
from vlmexport.families import find
from vlmexport.families.reading.published import Published
from vlmexport.model import VLM, load
from vlmexport.model.plugins import check_projector
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint
from vlmexport.source.shapes import clip, llama

LLAVA = {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
V1 = {"mm_vision_tower": "clip"}


@dataclass(frozen=True)
class Case:
    """``changes`` are made to the config, ``vision`` to the Spec that is expected."""

    projector: str = "ldpnetv2"
    naming: Naming = original
    config: Callable[[Spec], dict[str, Any]] = config_of
    changes: dict[str, Any] = field(default_factory=dict)
    layout: str = "mobilevlm"
    pads: bool = True
    vision: dict[str, Any] = field(default_factory=dict)
    language: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float16
    kind: str = "safetensors"
    shards: int = 1


CASES = {
    "v1": Case("ldpnet", changes=V1),
    "v2": Case(),
    "v2-bare-tower": Case(naming=original_bare),
    "v2-sharded": Case(shards=3),
    "v2-bin": Case(kind="bin"),
    "v2-bin-sharded": Case(kind="bin", shards=2),
    "v2-bf16": Case(dtype=torch.bfloat16),
    "v2-fp32": Case(dtype=torch.float32),
    "v2-tied": Case(language={"tie_word_embeddings": True}),
    "v2-grouped": Case(language={"num_kv_heads": 2}),
    "v2-not-pad": Case(changes={"image_aspect_ratio": None}, pads=False),
    "v2-layer-1": Case(vision={"select_layer": -1}),
    "v2-layer-3": Case(vision={"select_layer": -3}),
    "llava-mlp": Case("mlp2x_gelu", changes=LLAVA, layout="llava"),
    "llava-old-type": Case("mlp2x_gelu", changes=LLAVA | {"model_type": "llava"}, layout="llava"),
    "llava-bare": Case("mlp2x_gelu", original_bare, changes=LLAVA, layout="llava"),
    "llava-linear": Case("linear", changes=LLAVA, layout="llava"),
    "llava-cls": Case("mlp2x_gelu", changes=LLAVA, layout="llava", vision={"select_feature": "cls_patch"}),
    "llava-no-tower": Case("mlp2x_gelu", changes=LLAVA | V1, layout="llava"),
    "hf-old": Case("mlp2x_gelu", hf_old, hf_config, layout="llava-hf", pads=False),
    "hf-new": Case("mlp2x_gelu", hf_new, hf_config, layout="llava-hf", pads=False),
    "hf-full": Case(
        "mlp2x_gelu", hf_new, hf_config, layout="llava-hf",
        pads=False, vision={"select_feature": "cls_patch", "select_layer": -1},
    ),
    "hf-sharded-bf16": Case(
        "mlp2x_gelu", hf_old, hf_config, layout="llava-hf", pads=False, shards=2,
        dtype=torch.bfloat16,
    ),
}  # fmt: skip


def spec_of(case: Case) -> Spec:
    spec = tiny_spec(case.projector, image_size=168, **{"vocab_size": 448, "num_layers": 1} | case.language)
    vision = replace(spec.vision, **case.vision)
    projector = replace(spec.projector, in_tokens=vision.num_patches)
    pixels = spec.image_processor.with_padding(case.pads)
    return replace(
        spec, name="model", layout=case.layout, image_processor=pixels, vision=vision, projector=projector,
        max_images=1 if case.layout == "mobilevlm" else None,
    )  # fmt: skip


def write(case: Case, folder: Path) -> tuple[Path, dict[str, State]]:
    spec = spec_of(case)
    state = canonical_state(spec, dtype=case.dtype)
    inside = dict(state)
    if case.changes.get("mm_vision_tower") == "clip":
        write_clip(folder / "model" / "clip", spec, inside.pop("vision"))
    path = write_checkpoint(
        folder / "model", spec, state=published(inside, case.naming), pieces=384, kind=case.kind, shards=case.shards,
        config=case.config(spec), **case.changes,
    )  # fmt: skip
    return path, state


@pytest.mark.parametrize("name", sorted(CASES))
def test_opened_without_flags(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path, state = write(case, tmp_path)
    checkpoint = open_checkpoint(path)
    check_projector(checkpoint)
    inside = {"pad_token_id": 385, "image_token_id": 384} if case.layout == "llava-hf" else {}
    assert checkpoint.spec == replace(spec_of(case), **inside)
    assert (checkpoint.tower is None) == ("clip" not in case.changes.values())
    vlm = load(checkpoint)
    for component, tensors in state.items():
        found = getattr(vlm, component).state_dict()
        for key, value in tensors.items():
            assert torch.equal(found[key], value.float()), key
    assert {tensor.dtype for tensor in checkpoint.tensors["language"].values()} == {
        {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}[case.dtype]
    }


def test_mixed_types(tmp_path: Path) -> None:
    state = canonical_state(spec_of(Case()))
    state["vision"] = {name: value.float() for name, value in state["vision"].items()}
    state["projector"] = {name: value.bfloat16() for name, value in state["projector"].items()}
    path = write_checkpoint(tmp_path / "model", spec_of(Case()), state=published(state), pieces=384)
    vlm = load(open_checkpoint(path))
    for component, tensors in state.items():
        for name, value in tensors.items():
            assert torch.equal(getattr(vlm, component).state_dict()[name], value.float())


@pytest.mark.parametrize("saved", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_head_that_was_saved(saved: str, tmp_path: Path) -> None:
    """The embedding over again is left out, another matrix is the head: tensors decide, as in transformers 5."""
    spec = spec_of(CASES["v2"])
    state = canonical_state(spec)
    head = state["language"][saved]
    state["language"]["lm_head.weight"] = head.clone()
    path = write_checkpoint(tmp_path / "model", spec, state=published(state), pieces=384, tie_word_embeddings=True)
    checkpoint = open_checkpoint(path)
    tied = saved == "model.embed_tokens.weight"
    assert checkpoint.spec.language.tie_word_embeddings is tied
    assert ("lm_head.weight" in checkpoint.tensors["language"]) is not tied
    assert torch.equal(load(checkpoint).language.get_output_embeddings().weight, head.float())


@pytest.mark.parametrize("name", ["v1", "v2", "llava-cls", "v2-grouped"])
def test_expected_is_what_the_modules_have(name: str) -> None:
    spec = spec_of(CASES[name])
    vlm = VLM(spec)
    for module, expected in ((vlm.vision, clip(spec.vision)), (vlm.language, llama(spec.language))):
        assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == expected


def test_hf_sparse_config_is_filled(tmp_path: Path) -> None:
    from transformers import LlavaConfig

    from vlmexport.families import llava_hf

    config = {"model_type": "llava", "text_config": {"vocab_size": 32064, "rms_norm_eps": 1e-5}}
    assert find(config, tmp_path / "config.json") is llava_hf
    tower = clip(VisionSpec("clip", 336, 14, 1024, 4096, 24, 16))
    spec = llava_hf.spec(Published(tmp_path, "model", config, {"vision": tower}))
    assert (spec.language.hidden_size, spec.language.num_layers, spec.language.intermediate_size) == (4096, 32, 11008)
    assert (spec.language.rms_norm_eps, spec.vision.image_size, spec.vision.num_heads) == (1e-5, 336, 16)
    assert spec.image_token_id == LlavaConfig().image_token_index


def test_hf_preprocessor_decides_pixels(tmp_path: Path) -> None:
    path, _ = write(CASES["hf-new"], tmp_path)
    spec = spec_of(CASES["hf-new"])
    colours = {"image_mean": (0.5, 0.25, 0.125), "image_std": (0.5, 0.5, 0.25)}
    write_preprocessor(path, spec, do_pad=True, image_processor_type="LlavaImageProcessor", **colours)
    assert open_checkpoint(path).spec.image_processor == ImageProcessorSpec.square(168, True, **colours)
    write_preprocessor(path, spec, do_pad=True, **colours)
    assert not open_checkpoint(path).spec.image_processor.do_pad, "a CLIP processor does not pad to a square"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resample": 2}, "resample 2"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.00784"),
        ({"do_center_crop": False}, "neither padded nor cropped"),
        ({"image_mean": [0.5]}, "lacks or garbles"),
        ({"crop_size": 224}, "a middle of 224 pixels is cut out of 168"),
        ({"crop_size": 224, "size": 224}, "makes 224 pixels, the tower takes 168"),
        ({"size": None}, "a middle of 168 pixels is cut out of 224"),
        ({"size": {"height": 168, "width": 84}}, "lacks or garbles size"),
        ({"do_resize": False}, "do_resize False is not known"),
        ({"do_image_splitting": False}, "do_image_splitting False is not known"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "image processor 'LlavaNextImageProcessor' is not known"),
    ],
)
def test_other_pixels_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path, _ = write(CASES["v2"], tmp_path)
    write_preprocessor(path, spec_of(CASES["v2"]), **changes)
    with pytest.raises((Unsupported, CheckpointError), match=reason):
        open_checkpoint(path)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "tiles": ("v2", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
    "feature": ("v2", {"mm_vision_select_feature": "cls"}, "select_feature 'cls'"),
    "layers": ("v2", {"mm_vision_select_layer": [-2, -5]}, "features of several layers"),
    "layer": ("v2", {"mm_vision_select_layer": -9}, "layer -9 of 3"),
    "rope": ("v2", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, r"scaled \(yarn\)"),
    "rope5": ("v2", {"rope_parameters": {"rope_type": "yarn"}}, r"scaled \(yarn\)"),
    "rope-half": ("v2", {"rope_scaling": {"rope_type": "linear"}}, r"lacks or garbles 'factor'"),
    "rope-nought": ("v2", {"rope_scaling": {"type": "linear", "factor": 0}}, "lacks or garbles rope_scaling"),
    "act": ("v2", {"hidden_act": "gelu"}, "language model with 'gelu'"),
    "heads": ("v2", {"num_key_value_heads": 3}, "4 heads, 3 of keys"),
    "zero": ("v2", {"num_attention_heads": 0}, "0 heads, 4 of keys"),
    "many": ("v2", {"num_hidden_layers": 10**9}, "the config says 1000000000 layers"),
    "rows": ("v2", {"vocab_size": 384}, r"embed_tokens\.weight has the shape \[448, 256\], its config says \[384"),
    "untied": ("v2-tied", {"tie_word_embeddings": False}, r"1 tensor is missing: lm_head\.weight"),
    "strategy": ("hf-new", {"vision_feature_select_strategy": "max"}, "strategy 'max'"),
    "projector": ("hf-new", {"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
    "qwen": ("hf-new", {"text_config": {"model_type": "qwen2"}}, "'qwen2' language model"),
    "siglip": ("hf-new", {"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model' tower"),
    "bias": ("v2", {"attention_bias": True}, "attention_bias is true, which is not known"),
    "invented": ("v2", {"logit_scale": 0.5}, "logit_scale is 0.5, which is not known"),
    "s2": ("llava-mlp", {"s2_scales": [336, 672]}, r"s2_scales is \[336, 672\], which is not known"),
    "sliding": ("v2", {"use_sliding_window": True, "sliding_window": 64}, "attention with a sliding window"),
    "channels": ("hf-new", {"vision_config": {"num_channels": 4}}, "vision_config: num_channels is 4"),
    "hf-key": ("hf-new", {"vision_merge": "mean"}, 'vision_merge is "mean", which is not known'),
    "partial-rope": ("v2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "object": ("hf-new", {"text_config": 5}, "text_config is not a JSON object"),
    "next": ("hf-new", {"model_type": "llava_next", "architectures": ["LlavaNext"]}, "model type 'llava_next'"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_when_opened(name: str, tmp_path: Path) -> None:
    case, changes, reason = REFUSED[name]
    path, _ = write(replace(CASES[case], changes=CASES[case].changes | changes), tmp_path)
    with pytest.raises((Unsupported, CheckpointError), match=reason) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert caught.value.cure


def test_unknown_and_twofold_tensors_are_listed(tmp_path: Path) -> None:
    spec = spec_of(CASES["llava-mlp"])
    state = published(canonical_state(spec))
    extra = {"model.image_newline": torch.zeros(256)} | {f"x.{i}": torch.zeros(1) for i in range(5)}
    path = write_checkpoint(tmp_path / "model", spec, state=state | extra, pieces=384, **LLAVA)
    with pytest.raises(Unsupported, match=r"6 tensors are unknown: model\.image_newline, x\.0, x\.1, x\.2 and 2 more"):
        open_checkpoint(path)
    twice = {
        name.replace("vision_model.", ""): value.clone() for name, value in state.items() if "pre_layrnorm" in name
    }
    write_checkpoint(path, spec, state=state | twice, pieces=384, **LLAVA)
    with pytest.raises(CheckpointError, match="twice"):
        open_checkpoint(path)


def test_wrong_projector_tensors(tmp_path: Path) -> None:
    path, _ = write(replace(CASES["llava-mlp"], changes=LLAVA | {"mm_projector_type": "mlp3x_gelu"}), tmp_path)
    with pytest.raises(CheckpointError, match=r"projector: 2 tensors are missing: 4\.bias, 4\.weight"):
        check_projector(open_checkpoint(path))
    write_json(path / "config.json", config_of(spec_of(CASES["llava-mlp"])) | LLAVA | {"mm_projector_type": "linear"})
    with pytest.raises(CheckpointError, match="projector"):
        check_projector(open_checkpoint(path))


def test_an_adapter_is_told_apart(tmp_path: Path) -> None:
    path, _ = write(CASES["v2"], tmp_path)
    write_json(path / "adapter_config.json", {"peft_type": "LORA"})
    with pytest.raises(CheckpointError, match=r"is a LoRA adapter.*merge it"):
        open_checkpoint(path)


def test_opening_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    path, _ = write(CASES["v2-sharded"], tmp_path)
    code = (
        "import sys; from pathlib import Path; from vlmexport.source.checkpoint import open_checkpoint\n"
        f"c = open_checkpoint(Path({str(path)!r})); c.tokenizer\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_demo_is_recognised() -> None:
    from vlmexport.source.locate import open_model

    demo: Checkpoint = open_model("demo")
    assert (demo.spec.layout, demo.tower, demo.tokenizer.kind) == ("mobilevlm", None, "tokenizer.model")
