"""A bundle of a tiny SmolVLM, and the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tests.smolvlm import SIDE, Processor, processor, tokenizer
from vlmexport.pipeline import export
from vlmexport.recipe import resolve

LAYERS = 2
ANSWER = 8
"""Tokens of an answer."""

Built = tuple[SmolVLMForConditionalGeneration, Processor, Path]


def build(folder: Path) -> Built:
    """The model, its processor on Pillow, and the folder of the bundle."""
    tokens = tokenizer()
    model, made = _model(tokens), processor("smolvlm", tokens)
    model.generation_config.update(max_new_tokens=ANSWER, eos_token_id=tokens.eos_token_id)
    model.save_pretrained(folder / "model")
    made.save_pretrained(folder / "model")
    return model, made, export(str(folder / "model"), resolve("onnx-fp32", environ={}), folder / "bundle")


def _model(tokens: Any) -> SmolVLMForConditionalGeneration:
    """Random weights, large enough that answers depend on the picture."""
    image, end, pad = (tokens.convert_tokens_to_ids(text) for text in ("<image>", "<end_of_utterance>", "<|im_end|>"))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS}
    vision = sizes | {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    text = sizes | {
        "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokens),
        "bos_token_id": tokens.bos_token_id, "eos_token_id": end, "pad_token_id": pad, "max_position_embeddings": 2048,
    }  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=4, image_token_id=image, pad_token_id=pad
    )
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.1 if weight.dim() > 1 else 0.02))
            weight += float(weight.dim() == 1 and name.endswith("weight"))  # of a norm
        for text, number in tokens.get_vocab().items():
            model.lm_head.weight[number] *= text.isascii() and text.isalpha()  # answers are of whole characters
    return model
