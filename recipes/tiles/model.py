"""The model before training: transformers' own classes in SmolVLM's published layout, and its processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
)

from recipes.tiles.scenes import COLUMNS, NAMES, ROWS, plural
from recipes.tiles.vocabulary import IMAGE, TEMPLATE, tokenizer

TILE, PATCH, SHUFFLE, GRID = 72, 8, 3, 3  # pixels, pixels, patches a token takes per side, tiles per side
CELLS = TILE // PATCH // SHUFFLE  # tokens per side of a view
SEEN = CELLS * CELLS  # tokens of a view
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LOUDNESS = 0.5  # root mean square of embeddings and visual tokens


def processor(grid: int = GRID) -> Any:
    """SmolVLM's processor; pictures become ``grid`` × ``grid`` tiles and the global view."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": grid * TILE},
        max_image_size={"longest_edge": TILE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Idefics3Processor(images, tokenizer(), image_seq_len=SEEN, chat_template=TEMPLATE)


def config() -> Idefics3Config:
    """Sizes aside as SmolVLM-256M-Instruct publishes it."""
    pieces = tokenizer()
    ids = {f"{name}_token_id": getattr(pieces, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {
        "model_type": "llama", "vocab_size": len(pieces), "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": False, **TEXT, **ids,
    }  # fmt: skip
    vision = {"image_size": TILE, "patch_size": PATCH, "hidden_act": "gelu_pytorch_tanh", **VISION}
    return Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=SHUFFLE, tie_word_embeddings=False,
        image_token_id=pieces.convert_tokens_to_ids(IMAGE), **ids,
    )  # fmt: skip


def new_model(seed: int) -> Any:
    """A model with weights from which it learns soon: see ``_start``."""
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration._from_config(config(), attn_implementation="sdpa")
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    _start_vision(model.model.vision_model)
    for layer in model.model.text_model.layers:
        _start_layer(layer, model.config.text_config)
    _start_words(model)
    return model


@cache
def word_ids(words: tuple[str, ...]) -> torch.Tensor:
    """The token of each word, with the space before it.

    Raises:
        ValueError: a word is several tokens.
    """
    found = tokenizer()([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    if any(len(ids) != 1 for ids in found):
        several = [word for word, ids in zip(words, found, strict=True) if len(ids) != 1]
        raise ValueError(f"not one token each: {several}")
    return torch.tensor([ids[0] for ids in found])


@torch.no_grad()
def _start_vision(vision: Any) -> None:
    """Positions as sines: with small noise instead, nothing is learned for hundreds of steps."""
    side, width = TILE // PATCH, VISION["hidden_size"]
    angle = torch.arange(side)[:, None] * torch.exp(-torch.arange(width // 4) / (width // 4) * 3.0) * 1.5
    axis = torch.cat([angle.sin(), angle.cos()], 1) * 0.5
    table = torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], 1)
    vision.embeddings.position_embedding.weight.copy_(table)
    nn.init.normal_(vision.embeddings.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5)
    for name, parameter in vision.encoder.named_parameters():
        if parameter.ndim == 2:
            gain = 0.5 if "out_proj" in name or "fc2" in name else 1.0
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * gain)


@torch.no_grad()
def _start_layer(layer: Any, text: Any) -> None:
    """Blocks that find and copy: a word finds tokens that resemble it, and takes them over. Queries equal keys, strong
    where the rotation is slow; the output projection undoes the value projection."""
    attention, width = layer.self_attn, text.hidden_size
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    head = width // heads
    gain = torch.where(torch.arange(head) % (head // 2) >= head // 4, 1.3, 0.4)[:, None]
    keys = torch.cat([nn.init.orthogonal_(torch.empty(head, width)) * gain for _ in range(groups)])
    attention.k_proj.weight.copy_(keys + 0.01 * torch.randn_like(keys))
    every = torch.arange(heads) // (heads // groups)  # the group of each head
    shared = keys.view(groups, head, width)[every].reshape(width, width)
    attention.q_proj.weight.copy_(shared + 0.01 * torch.randn(width, width))
    nn.init.orthogonal_(attention.v_proj.weight)
    value = attention.v_proj.weight.view(groups, head, width)[every].reshape(width, width)
    attention.o_proj.weight.copy_(0.3 * value.T + 0.01 * torch.randn(width, width))
    for matrix, scale in ((layer.mlp.gate_proj, 1.0), (layer.mlp.up_proj, 1.0), (layer.mlp.down_proj, 0.2)):
        nn.init.normal_(matrix.weight, std=matrix.weight.shape[1] ** -0.5 * scale)


@torch.no_grad()
def _start_words(model: Any) -> None:
    """A plural resembles its singular, and the marker of a tile the words for its place."""
    table, pieces = model.model.text_model.embed_tokens.weight, model.lm_head.weight
    nn.init.normal_(table, std=LOUDNESS)
    share_names(model)
    rows, columns = table[word_ids(ROWS)], table[word_ids(COLUMNS)]
    markers = tokenizer()
    for row in range(GRID):
        for column in range(GRID):
            marker = markers.convert_tokens_to_ids(f"<row_{row + 1}_col_{column + 1}>")
            table[marker] = (rows[row] + columns[column]) * 0.5**0.5
    pieces.copy_(0.1 * table)


@torch.no_grad()
def share_names(model: Any) -> None:
    """Give plurals the embeddings of their singulars, and the output layer those of the names."""
    table = model.model.text_model.embed_tokens.weight
    names = word_ids(NAMES)
    table[word_ids(tuple(plural(name) for name in NAMES))] = table[names]
    model.lm_head.weight[names] = 0.1 * table[names]
