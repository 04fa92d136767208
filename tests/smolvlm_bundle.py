"""A tiny SmolVLM in the files of transformers.js, its graphs traced from transformers' own model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, SmolVLMConfig, SmolVLMForConditionalGeneration

from tests.manifests import manifest
from tests.smolvlm import SIDE, TEMPLATE, TOKENS, Processor, processor, tokenizer
from vlmexport.artifact.bundle.contents import list_files
from vlmexport.artifact.bundle.halves import Role
from vlmexport.artifact.bundle.write import write_manifest

LAYERS = 2
ANSWER = 8
"""Tokens of an answer."""

GRAPHS: tuple[Role, ...] = ("vision_encoder", "embed_tokens", "decoder_model_merged")
Built = tuple[SmolVLMForConditionalGeneration, Processor, Path]


class Vision(nn.Module):
    """Views are full: the mask is an input for the client's sake."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower, self.connector = model.model.vision_model, model.model.connector

    def forward(self, pixel_values: Tensor, pixel_attention_mask: Tensor) -> Tensor:
        found: Tensor = self.connector(self.tower(pixel_values=pixel_values.flatten(0, 1)).last_hidden_state)
        return found


class Decoder(nn.Module):
    """The language model with its cache as tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text, self.head = model.model.text_model, model.lm_head

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Any) -> Any:
        length, total = inputs_embeds.shape[1], attention_mask.shape[1]
        seen = torch.arange(total)[None] <= torch.arange(length)[:, None] + (total - length)
        mask = torch.where(seen[None, None] & (attention_mask != 0)[:, None, None], 0.0, torch.finfo(torch.float32).min)
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        told = {"position_ids": position_ids, "past_key_values": cache, "use_cache": True}
        found = self.text(inputs_embeds=inputs_embeds, attention_mask=mask, **told)
        return self.head(found.last_hidden_state), *(kept for one in cache.layers for kept in (one.keys, one.values))


def build(folder: Path) -> Built:
    """The model, its processor on Pillow, and the folder of the bundle."""
    tokens = tokenizer()
    (folder / "onnx").mkdir(parents=True)
    model = _model(tokens)
    _trace(model, folder / "onnx")
    made = processor("smolvlm", tokens)
    pixels = json.loads(made.image_processor.to_json_string()) | {
        "image_processor_type": "SmolVLMImageProcessor", "processor_class": "SmolVLMProcessor"
    }  # fmt: skip
    told = {"architectures": [type(model).__name__], "transformers.js_config": {"dtype": "fp32"}}
    documents = {
        "config": model.config.to_dict() | told, "preprocessor_config": pixels,
        "generation_config": {"max_new_tokens": ANSWER},
        "processor_config": {"processor_class": "SmolVLMProcessor", "image_seq_len": TOKENS},
    }  # fmt: skip
    tokens.save_pretrained(folder)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    documents["tokenizer_config"] = told | {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document, default=str))
    found = manifest()
    found.source.spec.max_images = None
    found.files = list_files(folder, {f"onnx/{role}.onnx": role for role in GRAPHS})
    write_manifest(folder, found)
    return model, made, folder


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


def _trace(model: SmolVLMForConditionalGeneration, folder: Path) -> None:
    text = model.config.text_config
    batch, length, past = {0: "batch_size"}, {1: "sequence_length"}, {2: "past_sequence_length"}
    pairs = [(f"{i}.key", f"{i}.value") for i in range(LAYERS)]
    names = [name for pair in pairs for name in pair]
    kept = torch.randn(LAYERS, 2, 2, text.num_key_value_heads, 5, text.hidden_size // text.num_attention_heads)
    pixels, mask = torch.randn(2, 3, 3, SIDE, SIDE), torch.ones(2, 3, SIDE, SIDE, dtype=torch.bool)
    cache, axes = [(key.clone(), value.clone()) for key, value in kept], [(batch | past, batch | past)] * LAYERS
    embeds, seen, places = torch.randn(2, 3, text.hidden_size), torch.ones(2, 8, dtype=torch.long), torch.arange(5, 8)
    taken, given = [f"past_key_values.{name}" for name in names], [f"present.{name}" for name in names]
    views = batch | {1: "num_images"}
    graphs: dict[Role, Any] = {
        "vision_encoder": (Vision(model), (pixels, mask), (views, views), ["pixel_values", "pixel_attention_mask"],
                           ["image_features"]),
        "embed_tokens": (model.get_input_embeddings(), (torch.zeros(2, 3, dtype=torch.long),), (batch | length,),
                         ["input_ids"], ["inputs_embeds"]),
        "decoder_model_merged": (
            Decoder(model), (embeds, seen, places.repeat(2, 1), cache),
            (batch | length, batch | {1: "total_sequence_length"}, batch | length, axes),
            ["inputs_embeds", "attention_mask", "position_ids", *taken], ["logits", *given],
        ),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        for role, (module, inputs, shapes, ins, outs) in graphs.items():
            torch.onnx.export(
                module.eval(), inputs, folder / f"{role}.onnx", dynamo=True, dynamic_shapes=shapes, input_names=ins,
                output_names=outs, opset_version=21, verbose=False, external_data=False,
            )  # fmt: skip
