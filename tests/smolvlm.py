"""Idefics3 and SmolVLM of transformers: tokenizers and processors as they are published, tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from recipes.tiles.vocabulary import GLOBAL, MARKERS, TEMPLATE
from tests.vocabularies import CHATML, byte_level, gguf_array
from vlmexport.processing.messages import Message, Picture

FIRST = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")
"""Tokens that the first SmolVLM of 2.2B added: its places of tiles are spelled."""

PLACED = (GLOBAL, *MARKERS, *FIRST)
"""Those of all others."""

SIDE, LONGEST, TOKENS = 64, 256, 4
"""Pixels of a tile and of the longest edge, and visual tokens of a view."""

Processor = Idefics3Processor | SmolVLMProcessor


def tokenizer(marks: Sequence[str] = PLACED, real: Tokenizer | None = None) -> PreTrainedTokenizerFast:
    """SmolLM2's tokens, the real ones or tiny, and those that were added to them."""
    found = real or byte_level("smollm", special=CHATML)
    found.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def processor(kind: str, tokens: PreTrainedTokenizerFast, **pixels: Any) -> Processor:
    """That of ``idefics3`` or ``smolvlm``, on Pillow.

    Args:
        pixels: of its image processor.
    """
    told = {"size": {"longest_edge": LONGEST}, "max_image_size": {"longest_edge": SIDE}} | pixels
    if kind == "idefics3":
        return Idefics3Processor(Idefics3ImageProcessorPil(**told), tokens, TOKENS, TEMPLATE)
    images = SmolVLMImageProcessorPil(**told)
    return SmolVLMProcessor(images, tokens, SmolVLMVideoProcessor(), TOKENS, TEMPLATE)


def asked_of(processor: Processor, messages: Sequence[Message], images: Sequence[Image.Image]) -> Any:
    """What a processor makes of a conversation: ``input_ids``, ``pixel_values``, masks."""
    following = iter(images)
    conversation = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": next(following)}
                for part in message.content
            ],
        }
        for message in messages
    ]  # fmt: skip
    return processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def real_tokens(vocabulary: Path) -> Tokenizer:
    """SmolLM2's ``tokenizer.json`` from the header of its GGUF file."""
    texts, kinds, merges = (gguf_array(vocabulary.read_bytes(), key) for key in ("tokens", "token_type", "merges"))
    document = json.loads(byte_level("smollm", special=()).to_str())
    document["model"] |= {"vocab": {text: i for i, text in enumerate(texts)}, "merges": merges}
    found = Tokenizer.from_str(json.dumps(document))
    found.add_special_tokens([AddedToken(text, special=True, normalized=False)
                              for text, kind in zip(texts, kinds, strict=True) if kind == 3])  # fmt: skip
    return found


LOOK = Message("user", (Picture.NEXT, "What is in it?"))
CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "question": (LOOK,),
    "text-first": (Message("user", ("Look at this:", Picture.NEXT, "\nand say what it is.\n\n")),),
    "two-images": (Message("user", (Picture.NEXT, Picture.NEXT, "Which one?\n")),),
    "between": (Message("user", ("a\n", Picture.NEXT, "\n", Picture.NEXT, "\n\nb")),),
    "turns": (
        Message("system", ("You are kind.",)), LOOK, Message("assistant", ("A chat, 12 of 34.",)),
        Message("user", ("And here?", Picture.NEXT)), Message("assistant", ("  nothing\n",)),
        Message("user", ("Sure?",)),
    ),
    "alone": (Message("user", (Picture.NEXT,)),),
    "no-image": (Message("user", ("hi <b>there</b>\n",)),),
    "strange": (Message("user", (Picture.NEXT, "  two  spaces\n\n\tlines 漢字 1234 🙂 <row_1_col_1")),),
}  # fmt: skip
PICTURES = ((300, 220), (64, 64), (20, 90))
"""3x4 tiles, 4x4 tiles, 4x1 tiles."""


VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": 8}  # fmt: skip
TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "initializer_range": 1 / 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
}  # fmt: skip
SMALL = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
"""Tower of the two smaller published sizes, and their language models."""

M256 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49280,
}  # fmt: skip
M500 = M256 | {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5,
}  # fmt: skip
Model = Idefics3ForConditionalGeneration | SmolVLMForConditionalGeneration
CLASSES: dict[str, tuple[Any, Any]] = {
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
}


def new_model(kind: str, tokens: PreTrainedTokenizerFast, text: dict[str, Any], **others: Any) -> Model:
    """transformers' class with random weights that matter: norms and biases are not as they are initialised.

    Args:
        text: of the language model's config.
        others: of the whole config.
    """
    torch.manual_seed(0)
    config, model = CLASSES[kind]
    rows = {"vocab_size": len(tokens) + 8, "pad_token_id": tokens.pad_token_id, "bos_token_id": tokens.bos_token_id}
    image = tokens.convert_tokens_to_ids("<image>")
    told = {"vision_config": VISION, "scale_factor": 4, "image_token_id": image} | others
    found = model(config(text_config=TEXT | rows | {"model_type": "llama"} | text, **told)).eval()
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
            elif "vision_model" in name or "connector" in name:
                value.normal_(std=0.1)
    found.generation_config.eos_token_id = tokens.eos_token_id
    return found


def write_model(folder: Path, kind: str, marks: Sequence[str] = PLACED, **text: Any) -> tuple[Model, Processor]:
    """Model and processor as ``save_pretrained`` writes them; more rows of the embedding than tokens, as published."""
    tokens = tokenizer(marks)
    model, made = new_model(kind, tokens, text), processor(kind, tokens)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model, made


def write_25_patches(folder: Path) -> tuple[Model, Processor]:
    """A SmolVLM whose tiles have 25 patches a side, a number whose fractions give two of them one position."""
    tokens = tokenizer()
    vision = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 100, "patch_size": 4,
    }  # fmt: skip
    model = new_model("smolvlm", tokens, {}, vision_config=vision, scale_factor=5)
    made = processor("smolvlm", tokens, size={"longest_edge": 200}, max_image_size={"longest_edge": 100})
    made.image_seq_len = 25
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return model, made
