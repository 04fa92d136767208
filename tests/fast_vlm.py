"""Tiny FastVLM checkpoints of random weights: as transformers saves its own class, and the same weights as Apple's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.checkpoints import write_json, write_weights
from tests.vocabularies import CHATML, byte_level, write_vocabulary
from vlmexport.families.reading.fastvit_tensors import SIZES, Sizes
from vlmexport.model.random_weights import measure_statistics, randomise

State = dict[str, torch.Tensor]
TINY = SIZES["tiny"]
PREFIX = "model.vision_tower.timm_model."
SIDE = 256
"""Pixels of a tiny image: 4x4 visual tokens."""

_TEXT = {
    "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip
WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 448, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "initializer_range": 1 / 16,
}  # fmt: skip
"""Rows that every format can hold; more rows of the embedding than tokens, as published. A product of 256 columns has
unit gain, as in the other tiny checkpoints: at 0.1 attention is so sharp that four bits cost 0.12 nats, by ONNX
Runtime's and llama.cpp's own quantizers as well."""

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}"
    "{% endfor %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def fast_vlm(text: dict[str, Any] | None = None, **model_args: Any) -> FastVlmForConditionalGeneration:
    """transformers' FastVLM around a narrow tower, of random weights."""
    vision = {
        "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "hidden_size": TINY.features,
        "model_args": {"layers": TINY.blocks, "embed_dims": TINY.widths, **model_args},
    }  # fmt: skip
    torch.manual_seed(0)
    config = FastVlmConfig(vision_config=vision, text_config=_TEXT | (text or {}), image_seq_length=16)
    model = FastVlmForConditionalGeneration(config).eval()
    tower = model.model.vision_tower.timm_model
    randomise(tower, torch.Generator().manual_seed(0))
    measure_statistics(tower, lambda: tower.forward_features(noise(128, 4)))
    return model


def noise(side: int, images: int = 1) -> torch.Tensor:
    """Pixels."""
    return torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(1))


def write_transformers(folder: Path, **text: Any) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    """Model and processor as ``save_pretrained`` writes them."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special=(*CHATML, "<image>")), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    end, image = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<image>"])
    model = fast_vlm(WIDE | {"bos_token_id": None, "eos_token_id": end} | text, inference_mode=True)
    model.config.image_token_index = image
    model.generation_config.eos_token_id = [end, tokenizer.pad_token_id]
    square = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=square, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    processor = LlavaProcessor(
        pixels, tokenizer, patch_size=64, vision_feature_select_strategy="full", chat_template=TEMPLATE
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def write_apple(folder: Path, saved: Path) -> Path:
    """The weights of ``write_transformers`` under Apple's names, with its config, and a tokenizer without ``<image>``
    in the files that LLaVA's training code saves.

    Args:
        saved: the folder that it wrote.
    """
    names = {timm: apple for apple, timm in apples_names(merged=True).items()}
    state: State = {"model.vision_tower.vision_tower.model.head.proj": torch.zeros(TINY.features, 4)}
    for name, value in load_file(saved / "model.safetensors").items():
        state[_apples(name, names)] = value.clone()
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, state)
    tokenizer = write_vocabulary(folder)
    write_json(folder / "config.json", apples_config(WIDE, tokenizer.token_to_id("<|im_end|>")))
    return folder


def _apples(name: str, tower: dict[str, str]) -> str:
    if name.startswith(PREFIX):
        return "model.vision_tower.vision_tower.model." + tower[name.removeprefix(PREFIX)]
    if name.startswith("model.multi_modal_projector."):
        layer, part = name.split(".")[-2:]
        return f"model.mm_projector.{ ({'linear_1': 0, 'linear_2': 2}[layer]) }.{part}"
    return name.replace("model.language_model.", "model.")


def apples_config(text: dict[str, Any], end: int, features: int = TINY.features, side: int = SIDE) -> dict[str, Any]:
    """As published, but for the sizes.

    Args:
        text: the language model's sizes.
        end: token id of ``<|im_end|>``.
        features: width of the tower's features.
        side: pixels along one side of an image.
    """
    text = {key: value for key, value in text.items() if key != "rope_parameters"}
    return text | {
        "architectures": ["LlavaQwen2ForCausalLM"], "model_type": "llava_qwen2", "attention_dropout": 0.0,
        "bos_token_id": end - 2, "eos_token_id": end, "hidden_act": "silu", "rope_theta": 1000000.0,
        "freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad", "image_grid_pinpoints": None,
        "max_window_layers": 24, "mm_hidden_size": features, "mm_patch_merge_type": "flat",
        "mm_projector_lr": None, "mm_projector_type": "mlp2x_gelu", "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": f"mobileclip_l_{side}", "sliding_window": 32768, "tie_word_embeddings": False,
        "tokenizer_model_max_length": 8192, "tokenizer_padding_side": "right", "torch_dtype": "bfloat16",
        "transformers_version": "4.39.3", "tune_mm_mlp_adapter": False, "unfreeze_mm_vision_tower": True,
        "use_cache": True, "use_mm_proj": True, "use_sliding_window": False,
    }  # fmt: skip


def padded(image: Image.Image) -> Image.Image:
    """A picture in the middle of a black square, as LLaVA's ``expand2square`` makes it where the mean is 0."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def apples_names(merged: bool, sizes: Sizes = TINY) -> dict[str, str]:
    """What Apple's modules call the tensors of a tower, and what timm's call them.

    Args:
        merged: the form for inference, in which their checkpoints are published; else that for training.
    """
    found: dict[str, str] = {}

    def add(apple: str, timm: str, *parts: str) -> None:
        found.update({f"{apple}.{part}": f"{timm}.{part}" for part in parts or ("weight", "bias")})

    def norm(apple: str, timm: str) -> None:
        add(apple, timm, "weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def branch(apple: str, timm: str) -> None:
        add(f"{apple}.conv", f"{timm}.conv", "weight")
        norm(f"{apple}.bn", f"{timm}.bn")

    def mobile_one(apple: str, timm: str, scale: bool, skip: bool, convolved: bool = True) -> None:
        if merged:
            return add(f"{apple}.reparam_conv", f"{timm}.reparam_conv")
        if convolved:
            branch(f"{apple}.rbr_conv.0", f"{timm}.conv_kxk.0")
        if scale:
            branch(f"{apple}.rbr_scale", f"{timm}.conv_scale")
        if skip:
            norm(f"{apple}.rbr_skip", f"{timm}.identity")
        return None

    def block(apple: str, timm: str, attends: bool) -> None:
        mixer = (f"{apple}.token_mixer", f"{timm}.token_mixer")
        if attends:
            add(f"{apple}.norm", f"{timm}.norm")
            add(f"{mixer[0]}.qkv", f"{mixer[1]}.qkv", "weight")
            add(f"{mixer[0]}.proj", f"{mixer[1]}.proj")
        elif merged:
            add(f"{mixer[0]}.reparam_conv", f"{mixer[1]}.reparam_conv")
        else:
            mobile_one(f"{mixer[0]}.mixer", f"{mixer[1]}.mixer", True, True)
            mobile_one(f"{mixer[0]}.norm", f"{mixer[1]}.norm", False, True, convolved=False)
            found[f"{mixer[0]}.layer_scale"] = f"{mixer[1]}.layer_scale.gamma"
        for scale in ("layer_scale_1", "layer_scale_2") if attends else ("layer_scale",):
            found[f"{apple}.{scale}"] = f"{timm}.{scale}.gamma"
        branch(f"{apple}.convffn.conv", f"{timm}.mlp.conv")
        for part in ("fc1", "fc2"):
            add(f"{apple}.convffn.{part}", f"{timm}.mlp.{part}")

    for i, skip in enumerate((False, False, True)):
        mobile_one(f"patch_embed.{i}", f"stem.{i}", False, skip)
    place = 0
    for stage, count in enumerate(sizes.blocks):
        if stage:
            apple, timm = f"network.{place}.proj", f"stages.{stage}.downsample.proj"
            if merged:
                add(f"{apple}.0.lkb_reparam", f"{timm}.0.reparam_conv")
            else:
                branch(f"{apple}.0.lkb_origin", f"{timm}.0.large_conv")
                branch(f"{apple}.0.small_conv", f"{timm}.0.small_conv")
            mobile_one(f"{apple}.1", f"{timm}.1", False, True)
            place += 1
        if stage > 2:
            names = ("reparam_conv", "reparam_conv") if merged else ("pe", "pos_enc")
            add(f"network.{place}.{names[0]}", f"stages.{stage}.pos_emb.{names[1]}")
            place += 1
        for i in range(count):
            block(f"network.{place}.{i}", f"stages.{stage}.blocks.{i}", stage > 2)
        place += 1
    mobile_one("conv_exp", "final_conv", True, False)
    add("conv_exp.se.reduce", "final_conv.se.fc1")
    add("conv_exp.se.expand", "final_conv.se.fc2")
    return found
