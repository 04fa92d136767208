"""Write a FastVLM checkpoint of full size with random weights, in Apple's published layout.

    python benchmarks/generate_fastvlm.py 0.5b /data/FastVLM-0.5B --vocabularies FOLDER

Batch norms of the tower are given what reaches them of two photographs, else its features say nothing of the image.
The vocabulary is Qwen2's: llama.cpp carries it as ``models/ggml-vocab-qwen2.gguf``, in the folder that is named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from fastvit import SIDE, Tower, photograph
from safetensors.torch import save_file

from tests.fast_vlm import apples_config, apples_names
from tests.vocabularies import write_real
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.families.reading.fastvit_tensors import SIZES
from vlmexport.model import plugins
from vlmexport.model.random_weights import measure_statistics, random_weight, randomise

TOWER = "model.vision_tower.vision_tower.model."
PHOTOGRAPHS = Path(__file__).parents[1] / "calibration" / "images"
QWEN2 = plugins.decoder("qwen2")
END = 151645
TOKENS = {
    "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
}  # fmt: skip
State = dict[str, torch.Tensor]


def tower() -> State:
    """FastViTHD and Apple's head, which nothing uses."""
    made, sizes = Tower(), SIZES["mci3"]
    randomise(made, torch.Generator().manual_seed(0))
    made.eval()
    images = torch.cat([photograph(path) for path in sorted(PHOTOGRAPHS.glob("photo-*"))[:2]])
    measure_statistics(made, lambda: made(images))
    names = {timm: apple for apple, timm in apples_names(True, sizes).items()}
    found = {TOWER + names[name]: value for name, value in made.vision.state_dict().items()}
    return found | {TOWER + "head.proj": torch.zeros(sizes.features, 768)}


def projector(hidden: int, random: torch.Generator) -> State:
    """Two linear layers."""
    shapes = {"0": (hidden, SIZES["mci3"].features), "2": (hidden, hidden)}
    return {
        f"model.mm_projector.{layer}.{part}": random_weight(part, torch.empty(wanted, device="meta"), random)
        for layer, shape in shapes.items()
        for part, wanted in (("weight", shape), ("bias", shape[:1]))
    }


def language(spec: LanguageSpec, random: torch.Generator) -> State:
    """Qwen2 with a head of its own, as published."""
    shapes = QWEN2.shapes(spec)
    return {name: random_weight(name, torch.empty(shape, device="meta"), random) for name, shape in shapes.items()}


def config(spec: LanguageSpec) -> dict[str, Any]:
    """``config.json``."""
    text = {
        "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers, "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads, "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions, "rms_norm_eps": spec.rms_norm_eps,
    }  # fmt: skip
    return dict(apples_config(text, END, SIZES["mci3"].features, SIDE))


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("0.5b", "1.5b"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabularies", type=Path, required=True, help="models/ of a llama.cpp checkout")
    arguments = parser.parse_args()
    folder, spec = arguments.folder, QWEN2.preset(arguments.size)
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    state = tower() | projector(spec.hidden_size, random) | language(spec, random)
    half = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    write_real(arguments.vocabularies, "qwen2", folder)
    for name, document in (("config.json", config(spec)), ("tokenizer_config.json", TOKENS)):
        (folder / name).write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
