"""InternVL of transformers: tokenizer and processor as they are published, tiny checkpoints in both layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.vocabularies import CHATML, byte_level

MARKS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Tokens that InternVL adds to a vocabulary."""

SIDE, PATCH = 28, 7
"""Pixels of a tile and of a patch: 16 patches, 4 visual tokens."""

TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2's rules with few tokens, and those that were added."""
    found = byte_level("qwen2", special=CHATML)
    found.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (*MARKS, "<video>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )  # fmt: skip


def processor(tokens: PreTrainedTokenizerFast, **pixels: Any) -> InternVLProcessor:
    """On Pillow, its image processor's file as published: nothing is cut.

    Args:
        pixels: of its image processor.
    """
    told = {
        "size": {"height": SIDE, "width": SIDE}, "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225], "crop_to_patches": False,
    } | pixels  # fmt: skip
    images = GotOcr2ImageProcessorPil(**told)
    return InternVLProcessor(images, tokens, InternVLVideoProcessor(), (SIDE // PATCH // 2) ** 2, TEMPLATE)


VISION = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": PATCH, "attention_bias": True,
}  # fmt: skip
"""Four layers: llama.cpp's converter cannot name the projector's of fewer."""

TEXT: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "initializer_range": 1 / 16,
    "tie_word_embeddings": False,
}  # fmt: skip
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": DYNAMIC, "qwen3": {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "llama": DYNAMIC,
}  # fmt: skip
"""InternVL 3's, 3.5's, and that of 2.5 with InternLM2 as transformers has it."""


def new_model(
    kind: str, tokens: PreTrainedTokenizerFast, text: dict[str, Any] | None = None, **others: Any
) -> InternVLForConditionalGeneration:
    """transformers' class with random weights that matter: norms, biases and scales are not as they are initialised.

    Args:
        kind: of the language model.
        text: of its config.
        others: of the whole config.
    """
    torch.manual_seed(0)
    rows = {"vocab_size": len(tokens) + 8, "pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id}
    told = {
        "vision_config": VISION, "image_token_id": tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": (SIDE // PATCH // 2) ** 2, "tie_word_embeddings": False,
    } | others  # fmt: skip
    section = TEXT | rows | {"model_type": kind} | KINDS[kind] | (text or {})
    found = InternVLForConditionalGeneration(InternVLConfig(text_config=section, **told)).eval()
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
            elif "lambda" in name:
                value.normal_(0.5, 0.2)
            elif "vision_tower" in name or "projector" in name:
                value.normal_(std=0.1)
    found.generation_config.eos_token_id = tokens.eos_token_id
    return found


def write_model(
    folder: Path, kind: str = "qwen2", **text: Any
) -> tuple[InternVLForConditionalGeneration, InternVLProcessor]:
    """Model and processor as ``save_pretrained`` writes them; more rows of the embedding than tokens, as published."""
    tokens = tokenizer()
    model, made = new_model(kind, tokens, text), processor(tokens)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model, made


_TOWER = (
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
    ("encoder.layer.", "encoder.layers."),
    (".attention.projection_layer", ".attn.proj"),
    (".layernorm_before", ".norm1"),
    (".layernorm_after", ".norm2"),
    (".lambda_", ".ls"),
)
_PROJECTOR = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}


def renamed(model: InternVLForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The same weights under OpenGVLab's names: query, key and value of the tower are one tensor."""
    found, fused = {}, dict[str, dict[str, torch.Tensor]]()
    for name, value in model.state_dict().items():
        inner = name.removeprefix("model.")
        if inner.startswith("vision_tower."):
            inner = inner.replace("vision_tower.", "vision_model.", 1)
            for ours, theirs in _TOWER:
                inner = inner.replace(ours, theirs)
            before, part, kind = inner.partition(".attention.")
            if part:
                letter, _, kind = kind.partition("_proj.")
                fused.setdefault(f"{before}.attn.qkv.{kind}", {})[letter] = value
                continue
        elif inner.startswith("multi_modal_projector."):
            layer, _, kind = inner.removeprefix("multi_modal_projector.").partition(".")
            inner = f"{_PROJECTOR[layer]}.{kind}"
        else:
            inner = inner.replace("language_model.", "language_model.model.", 1)
            inner = f"language_model.{inner}" if inner.startswith("lm_head") else inner
        found[inner] = value
    return found | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in fused.items()}


def own_config(model: InternVLForConditionalGeneration, **others: Any) -> dict[str, Any]:
    """Of InternVL3's and 3.5's files: all that they say of the tower, of a language model what its class has."""
    vision, text = model.config.vision_config, model.config.text_config
    names = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
    return {
        "_commit_hash": None, "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}, "downsample_ratio": 0.5,
        "dynamic_image_size": True, "force_image_size": SIDE, "hidden_size": text.hidden_size, "image_fold": None,
        "llm_config": text.to_dict() | {
            "architectures": [names[text.model_type]], "moe_config": None, "use_bfloat16": True,
            "attn_implementation": "flash_attention_2",
        },
        "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat", "output_attentions": False,
        "pad2square": False, "ps_version": "v2", "select_layer": -1, "system_message": None, "template": "internvl2_5",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": None, "use_backbone_lora": 0,
        "use_llm_lora": 0, "use_thumbnail": True,
        "vision_config": {
            "_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5", "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0, "auto_map": {}, "capacity_factor": 1.2, "drop_path_rate": 0.1, "dropout": 0.0,
            "eval_capacity_factor": 1.4, "hidden_act": "gelu", "hidden_size": vision.hidden_size, "image_size": SIDE,
            "initializer_factor": 0.1, "initializer_range": 1e-10, "intermediate_size": vision.intermediate_size,
            "laux_allreduce": "all_nodes", "layer_norm_eps": 1e-6, "model_type": "intern_vit_6b",
            "moe_coeff_ratio": 0.5, "moe_intermediate_size": 768, "moe_output_scale": 4.0,
            "noisy_gate_policy": "RSample_before", "norm_type": "layer_norm",
            "num_attention_heads": vision.num_attention_heads, "num_channels": 3, "num_experts": 8,
            "num_hidden_layers": vision.num_hidden_layers, "num_routed_experts": 4, "num_shared_experts": 4,
            "patch_size": PATCH, "qk_normalization": False, "qkv_bias": vision.attention_bias,
            "shared_expert_intermediate_size": 3072, "torch_dtype": "bfloat16", "use_bfloat16": True,
            "use_flash_attn": True, "use_moe": False, "use_residual": True, "use_rts": False,
            "use_weighted_residual": False,
        },
    } | others  # fmt: skip


def write_own(folder: Path, model: InternVLForConditionalGeneration, made: InternVLProcessor, **others: Any) -> Path:
    """The weights of a model in OpenGVLab's layout, with the files that lie beside such weights.

    Args:
        others: keys of ``config.json``.
    """
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in renamed(model).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(own_config(model, **others)))
    made.tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"_from_model_config": True}))
    pixels = {
        "crop_size": 448, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 448, "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder
