"""Tiny random checkpoints in the published layouts, with the exact tensor names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file

from vlmexport.checkpoint import LanguageSpec, ProjectorSpec, PromptSpec, Spec, VisionSpec
from vlmexport.model.vlm import VLM

TOWER = "model.vision_tower.vision_tower.vision_model."


def tiny_spec(projector: str = "mlp2x_gelu", image_size: int = 336, **language: Any) -> Spec:
    """Widths that suit every format: rows of 256, n_ff ≠ n_embd, a 24x24 grid at 336 pixels."""
    vision = VisionSpec("clip", image_size, 14, 64, 128, 3, 1, aspect_ratio="pad")
    sizes = {
        "vocab_size": 384, "hidden_size": 256, "intermediate_size": 512, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_positions": 2048,
        "tie_word_embeddings": False,
    } | language  # fmt: skip
    return Spec(
        name="tiny",
        layout="mobilevlm",
        vision=vision,
        projector=ProjectorSpec(projector, 64, int(sizes["hidden_size"]), vision.num_patches),
        language=LanguageSpec("llama", **sizes),
        prompt=PromptSpec(),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        torch_dtype="float16",
    )


def random_state(spec: Spec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under their published names; norms near one, the rest of a size that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in VLM(spec).state_dict().items():
        scale = 0.1 if value.ndim == 1 else min(1.0, 1.0 / value[0].numel() ** 0.5)
        tensor = torch.randn(value.shape, generator=generator) * scale
        if ("norm" in name and name.endswith("weight")) or name.endswith(("0.1.weight", "2.1.weight")):
            tensor = 1 + tensor
        component, rest = name.split(".", 1)
        prefix = {"vision": TOWER, "projector": "model.mm_projector.", "language": ""}[component]
        state[prefix + rest] = tensor.to(torch.float16).contiguous()
    return state


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
        "mm_vision_select_feature": spec.vision.select_feature, "image_aspect_ratio": spec.vision.aspect_ratio,
    }  # fmt: skip


def write_checkpoint(folder: Path, spec: Spec | None = None, seed: int = 0) -> Path:
    """A whole checkpoint folder."""
    spec = spec or tiny_spec()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_state(spec, seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(spec), indent=2))
    write_tokenizer(folder, spec.language.vocab_size)
    return folder
