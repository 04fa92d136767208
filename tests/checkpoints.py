"""Tiny random checkpoints in the published layouts, with the exact tensor names."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

from vlmexport.checkpoint.spec import ImageProcessorSpec, LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.families import design
from vlmexport.model.vlm import VLM

TOWER = "model.vision_tower.vision_tower.vision_model."
State = dict[str, torch.Tensor]
Naming = Callable[[str, str], str]


def tiny_spec(projector: str = "mlp2x_gelu", image_size: int = 336, **language: Any) -> Spec:
    """Widths that suit every format: rows of 256, n_ff ≠ n_embd, a 24x24 grid at 336 pixels."""
    vision = VisionSpec("clip", image_size, 14, 64, 128, 3, 1)
    sizes = {
        "vocab_size": 384, "hidden_size": 256, "intermediate_size": 512, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_positions": 2048,
        "tie_word_embeddings": False, "kind": "llama",
    } | language  # fmt: skip
    return Spec(
        name="tiny",
        layout="mobilevlm",
        image_processor=ImageProcessorSpec.square(image_size, pads=True),
        vision=vision,
        projector=ProjectorSpec(projector, 64, int(sizes["hidden_size"]), vision.num_patches),
        language=LanguageSpec(**sizes),
        prompt=PromptSpec(),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        torch_dtype="float16",
    )


def canonical_state(spec: Spec, seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, State]:
    """Random weights by component; norms near one, the rest of a size that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, State] = {"vision": {}, "projector": {}, "language": {}}
    for name, value in VLM(spec).state_dict().items():
        scale = 0.1 if value.ndim == 1 else min(1.0, 1.0 / value[0].numel() ** 0.5)
        tensor = torch.randn(value.shape, generator=generator) * scale
        if ("norm" in name and name.endswith("weight")) or name.endswith(("0.1.weight", "2.1.weight")):
            tensor = 1 + tensor
        component, rest = name.split(".", 1)
        state[component][rest] = tensor.to(dtype).contiguous()
    if spec.language.tie_word_embeddings:
        del state["language"]["lm_head.weight"]
    return state


def original(component: str, name: str) -> str:
    """Names of MobileVLM and of LLaVA's own code."""
    return {"vision": TOWER, "projector": "model.mm_projector.", "language": ""}[component] + name


def original_bare(component: str, name: str) -> str:
    """The same, the tower without ``vision_model.``."""
    return original(component, name).replace("vision_model.", "")


def hf_old(component: str, name: str) -> str:
    """Names of LLaVA in transformers before 4.52."""
    if component == "projector":
        layer, part = name.split(".")
        return f"multi_modal_projector.linear_{1 + int(layer) // 2}.{part}"
    return {"vision": "vision_tower.vision_model.", "language": "language_model."}[component] + name


def hf_new(component: str, name: str) -> str:
    """Names of LLaVA in transformers 4.52 and later."""
    if component == "language":
        return name if name.startswith("lm_head") else "model.language_model." + name.removeprefix("model.")
    return "model." + hf_old(component, name)


def published(state: dict[str, State], naming: Naming = original) -> State:
    """All components under their published names."""
    return {naming(part, name): value for part, tensors in state.items() for name, value in tensors.items()}


def random_state(spec: Spec, seed: int = 0) -> State:
    """Random weights under their published names."""
    return published(canonical_state(spec, seed))


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A SentencePiece BPE with Llama's normalisation and byte fallback."""
    model = io.BytesIO()
    words = "chat between curious user and artificial intelligence assistant gives helpful detailed polite answers"
    sentences = [f"{a} {b} USER: what is the {a} ? ASSISTANT: a {b}" for a in words.split() for b in words.split()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def config_of(spec: Spec) -> dict[str, Any]:
    """``config.json`` as MobileVLM publishes it; the tower is named by a Hub id alone."""
    language = spec.language
    return {
        "model_type": "mobilevlm", "architectures": ["MobileLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
        "hidden_act": "silu", "hidden_size": language.hidden_size, "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_layers, "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads, "rms_norm_eps": language.rms_norm_eps,
        "max_position_embeddings": language.max_positions, "vocab_size": language.vocab_size,
        "tie_word_embeddings": language.tie_word_embeddings, "head_dim": language.head_dim, "torch_dtype": "float16",
        "mm_projector_type": spec.projector.kind, "mm_hidden_size": spec.vision.hidden_size,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_vision_select_layer": spec.vision.select_layer,
        "mm_vision_select_feature": spec.vision.select_feature, 
        "image_aspect_ratio": "pad" if spec.image_processor.do_pad else "square",
    }  # fmt: skip


def vision_config(spec: Spec) -> dict[str, Any]:
    """The tower in the terms of ``CLIPVisionConfig``."""
    vision = spec.vision
    return {
        "model_type": "clip_vision_model", "hidden_size": vision.hidden_size, "image_size": vision.image_size,
        "patch_size": vision.patch_size, "intermediate_size": vision.intermediate_size,
        "num_attention_heads": vision.num_heads, "num_hidden_layers": vision.num_layers, "projection_dim": 32,
    }  # fmt: skip


def hf_config(spec: Spec) -> dict[str, Any]:
    """``config.json`` as llava-hf publishes it: both configs inside say only what is no default."""
    language = spec.language
    return {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 384,
        "pad_token_id": 385, "projector_hidden_act": "gelu", "torch_dtype": "float16", "tie_word_embeddings": False,
        "vision_feature_layer": spec.vision.select_layer,
        "vision_feature_select_strategy": "default" if spec.vision.select_feature == "patch" else "full",
        "vision_config": vision_config(spec),
        "text_config": {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": language.rms_norm_eps,
            "vocab_size": language.vocab_size, "hidden_size": language.hidden_size,
            "intermediate_size": language.intermediate_size, "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
        },
    }  # fmt: skip


def write_design(folder: Path, spec: Spec, dtype: torch.dtype = torch.float16) -> Path:
    """A checkpoint as ``vlmexport new`` writes it, of a Spec that no variant has."""
    state = published(canonical_state(spec, dtype=dtype), lambda component, name: f"{component}.{name}")
    return write_checkpoint(folder, spec, state=state, config=design.config(spec))


def write_json(path: Path, document: Any) -> None:
    """A JSON file."""
    path.write_text(json.dumps(document, indent=2))


def write_weights(folder: Path, state: State, kind: str = "safetensors", shards: int = 1) -> None:
    """One file, or shards with their index; ``kind`` is safetensors or bin."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names, weight_map = sorted(state), {}
    for i in range(shards):
        part = {name: state[name] for name in names[i::shards]}
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}.{kind}"
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        write_json(folder / f"{stem}.{kind}.index.json", {"metadata": {}, "weight_map": weight_map})


def write_clip(folder: Path, spec: Spec, state: State) -> Path:
    """A CLIP folder as OpenAI publishes it, its text half included."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"vision_model.{name}": value for name, value in state.items()}
    tensors |= {
        "vision_model.embeddings.position_ids": torch.arange(spec.vision.grid**2 + 1)[None],
        "text_model.embeddings.token_embedding.weight": torch.zeros(8, 32), "logit_scale": torch.tensor(2.6592),
        "text_model.final_layer_norm.weight": torch.ones(32), "text_projection.weight": torch.zeros(32, 32),
        "visual_projection.weight": torch.zeros(32, spec.vision.hidden_size),
    }  # fmt: skip
    write_weights(folder, tensors, "bin")
    write_json(folder / "config.json", {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 32,
        "text_config": {"model_type": "clip_text_model", "hidden_size": 32}, "vision_config": vision_config(spec),
    })  # fmt: skip
    write_preprocessor(folder, spec)
    return folder


def write_preprocessor(folder: Path, spec: Spec, **changes: Any) -> None:
    """``preprocessor_config.json`` of a CLIP."""
    side = spec.vision.image_size
    write_json(folder / "preprocessor_config.json", {
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_normalize": True, "do_resize": True,
        "image_mean": spec.image_processor.image_mean, "image_std": spec.image_processor.image_std, "resample": 3,
        "size": {"shortest_edge": side}, "image_processor_type": "CLIPImageProcessor", **changes,
    })  # fmt: skip


def write_checkpoint(
    folder: Path, spec: Spec | None = None, seed: int = 0, *, state: State | None = None, pieces: int | None = None,
    kind: str = "safetensors", shards: int = 1, config: dict[str, Any] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A whole checkpoint folder, MobileVLM V2 by default; ``changes`` are made to the config."""
    spec = spec or tiny_spec()
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, random_state(spec, seed) if state is None else state, kind, shards)
    write_json(folder / "config.json", (config or config_of(spec)) | changes)
    write_tokenizer(folder, pieces or spec.language.vocab_size)
    return folder
