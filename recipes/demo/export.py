"""Checkpoint → the published MobileVLM V2 layout: one folder with config, float16 weights, tokenizer, model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import language
import torch
import tower
from data import MEAN, STD
from outliers import with_outliers
from prompts import VOCABULARY, Prompts, train_tokenizer
from safetensors.torch import save_file
from stage_answer import Model
from torch import Tensor

from vlmexport.demo.scenes import SIDE

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
SAMPLING = 3  # PIL's bicubic


def config() -> dict[str, Any]:
    """config.json as MobileVLM V2 publishes it; the tower's sizes stand in vision_config, not behind a Hub id."""
    return {
        "architectures": ["MobileLlamaForCausalLM"],
        "model_type": "mobilevlm",
        "vocab_size": VOCABULARY,
        "hidden_size": language.WIDTH,
        "intermediate_size": language.INNER,
        "num_hidden_layers": language.LAYERS,
        "num_attention_heads": language.HEADS,
        "num_key_value_heads": language.HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": language.EPS,
        "rope_theta": language.THETA,
        "rope_scaling": None,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": True,
        "torch_dtype": "float16",
        "freeze_mm_mlp_adapter": False,
        "tune_mm_mlp_adapter": False,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "mm_hidden_size": tower.WIDTH,
        "mm_projector_type": "ldpnetv2",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "vlmexport/demo-clip-336",
        "use_mm_proj": True,
        "vision_tower_type": "clip",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": tower.WIDTH,
            "intermediate_size": tower.INNER,
            "num_hidden_layers": tower.LAYERS,
            "num_attention_heads": tower.HEADS,
            "image_size": SIDE,
            "patch_size": tower.PATCH,
            "num_channels": 3,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    }


def tower_tensors(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIPVisionModel's tensors. The last block and post_layernorm are published but never read: small noise."""
    tensors = {
        TOWER_PREFIX + (f"encoder.{name}" if name.startswith("layers.") else name): tensor
        for name, tensor in trained.items()
    }
    noise = torch.Generator().manual_seed(0)
    last = f"{TOWER_PREFIX}encoder.layers.{tower.USED_LAYERS}."
    model = f"{TOWER_PREFIX}encoder.layers.0."
    for name in [name for name in tensors if name.startswith(model)]:
        unused = torch.randn(tensors[name].shape, generator=noise) * 0.02
        tensors[last + name.removeprefix(model)] = unused + ("norm" in name and name.endswith("weight"))
    tensors[TOWER_PREFIX + "post_layernorm.weight"] = torch.ones(tower.WIDTH)
    tensors[TOWER_PREFIX + "post_layernorm.bias"] = torch.zeros(tower.WIDTH)
    return tensors


def tensors_of(trained_tower: dict[str, Tensor], answering: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under its published name, float16."""
    tensors = tower_tensors(trained_tower)
    for name, tensor in answering.items():
        if name.startswith("projector."):
            tensors["model.mm_projector." + name.removeprefix("projector.")] = tensor
        elif name == "language.lm_head.weight":
            tensors["lm_head.weight"] = tensor
        elif name.startswith("language."):
            tensors["model." + name.removeprefix("language.")] = tensor
    return {name: tensor.half().contiguous() for name, tensor in sorted(tensors.items())}


def side_files() -> dict[str, dict[str, Any]]:
    """The small JSON files of a published checkpoint."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return {
        "config.json": config(),
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "do_sample": False,
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 2048,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "use_default_system_prompt": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            "crop_size": SIDE,
            "size": SIDE,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": list(MEAN),
            "image_std": list(STD),
            "resample": SAMPLING,
        },
    }


def export(work: Path, out: Path) -> None:
    """Write beside `out`, then move file by file, so that readers never see half a file.

    Stages that have not run yet give their start values: the shapes are right, the answers are not.
    """
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    if not (work / "tokenizer.model").exists():
        train_tokenizer(work / "tokenizer.model")
    Prompts(work / "tokenizer.model").name_id("cat")
    shutil.copy(work / "tokenizer.model", fresh / "tokenizer.model")
    torch.manual_seed(0)
    trained = torch.load(work / "tower.pt")["tower"] if (work / "tower.pt").exists() else tower.Tower().state_dict()
    answering = Model().state_dict()
    if (work / "answer.pt").exists():
        answering = torch.load(work / "answer.pt")["model"]
    elif (work / "align.pt").exists():
        answering = torch.load(work / "align.pt")
    answering = with_outliers(answering, "language.")
    save_file(tensors_of(trained, answering), str(fresh / "model.safetensors"), metadata={"format": "pt"})
    for name, content in side_files().items():
        (fresh / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (fresh / "README.md").write_text("# demo\n\nNot evaluated yet.\n", encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(fresh.iterdir()):
        path.chmod(0o644)
        path.replace(out / path.name)
    fresh.rmdir()
