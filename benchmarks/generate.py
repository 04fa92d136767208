"""Write a MobileVLM V2 checkpoint of full size with random weights, in its published layout.

    python benchmarks/generate.py 1.7b /data/MobileVLM_V2-1.7B --vocab ggml-vocab-llama-spm.gguf

Sizes are those of the published config.json files; weights are normal, of a spread with which activations stay finite
through all layers. The vocabulary is Llama's: llama.cpp carries it as ``models/ggml-vocab-llama-spm.gguf``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

TOWER = "model.vision_tower.vision_tower.vision_model."
PATCHES = 24 * 24
SIZES = {
    "1.7b": {"hidden": 2048, "inner": 5632, "layers": 24, "heads": 16},
    "3b": {"hidden": 2560, "inner": 6912, "layers": 32, "heads": 32},
    "7b": {"hidden": 4096, "inner": 11008, "layers": 32, "heads": 32},
}
_BLOCK = 1 << 22
"""Distinct random values; larger tensors repeat them, each from another start."""

Shape = tuple[int, ...]


def language(size: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    """Tensors of LlamaForCausalLM."""
    hidden, inner = size["hidden"], size["inner"]
    yield "model.embed_tokens.weight", (32000, hidden)
    for layer in range(size["layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            yield f"{prefix}self_attn.{name}_proj.weight", (hidden, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (32000, hidden)


def tower() -> Iterator[tuple[str, Shape]]:
    """Tensors of CLIP ViT-L/14-336."""
    yield "embeddings.class_embedding", (1024,)
    yield "embeddings.patch_embedding.weight", (1024, 3, 14, 14)
    yield "embeddings.position_embedding.weight", (PATCHES + 1, 1024)
    for name in ("pre_layrnorm", "post_layernorm"):
        yield f"{name}.weight", (1024,)
        yield f"{name}.bias", (1024,)
    for layer in range(24):
        prefix = f"encoder.layers.{layer}."
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            yield f"{prefix}{name}.weight", (1024, 1024)
            yield f"{prefix}{name}.bias", (1024,)
        yield f"{prefix}mlp.fc1.weight", (4096, 1024)
        yield f"{prefix}mlp.fc1.bias", (4096,)
        yield f"{prefix}mlp.fc2.weight", (1024, 4096)
        yield f"{prefix}mlp.fc2.bias", (1024,)
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{prefix}{name}.weight", (1024,)
            yield f"{prefix}{name}.bias", (1024,)


def projector(hidden: int) -> Iterator[tuple[str, Shape]]:
    """Tensors of LDPv2."""
    for index, columns in ((0, 1024), (2, hidden)):
        yield f"mlp.mlp.{index}.weight", (hidden, columns)
        yield f"mlp.mlp.{index}.bias", (hidden,)
    yield "peg.peg.0.weight", (hidden, 1, 3, 3)
    yield "peg.peg.0.bias", (hidden,)


def shapes(size: dict[str, int]) -> dict[str, Shape]:
    """Published name → shape of every tensor."""
    found = dict(language(size))
    found |= {TOWER + name: shape for name, shape in tower()}
    return found | {f"model.mm_projector.{name}": shape for name, shape in projector(size["hidden"])}


def config(size: dict[str, int]) -> dict[str, Any]:
    """``config.json``."""
    return {
        "architectures": ["MobileLlamaForCausalLM"], "model_type": "mobilevlm", "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 32000, "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
        "num_key_value_heads": size["heads"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True, "image_aspect_ratio": "pad",
        "mm_hidden_size": 1024, "mm_projector_type": "ldpnetv2", "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False, "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2,
        "mm_vision_tower": "mtgv/clip-vit-large-patch14-336", "use_mm_proj": True,
    }  # fmt: skip


def values(name: str, shape: Shape, block: np.ndarray) -> np.ndarray:
    """f16 weights: norms near one, matrices so that a product keeps the size of its input."""
    count = math.prod(shape)
    start = crc32(name.encode()) % _BLOCK
    flat = np.resize(np.roll(block, -start), count)
    scale = 0.02 if len(shape) == 1 else 0.5 / math.sqrt(count / shape[0])
    result = flat * np.float32(scale)
    if "norm" in name and name.endswith("weight"):
        result += 1
    return result.astype(np.float16).reshape(shape)


def write_safetensors(path: Path, tensors: dict[str, Shape], block: np.ndarray) -> None:
    """One tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors.items():
            file.write(values(name, shape, block).tobytes())


def write_weights(folder: Path, tensors: dict[str, Shape], shards: int) -> None:
    """A single file, or shards of about equal size with their index."""
    block = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, block)
        return
    total, done = sum(math.prod(shape) for shape in tensors.values()), 0
    parts: list[dict[str, Shape]] = [{} for _ in range(shards)]
    for name, shape in tensors.items():
        parts[min(done * shards // total, shards - 1)][name] = shape
        done += math.prod(shape)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, part, block)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(path: Path, vocab: Path) -> None:
    """Llama's ``tokenizer.model`` from the vocabulary that a GGUF holds."""
    import gguf
    from sentencepiece import sentencepiece_model_pb2

    fields = gguf.GGUFReader(vocab).fields
    model = sentencepiece_model_pb2.ModelProto()
    columns = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    for text, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(model.pieces)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    normalizer = model.normalizer_spec
    normalizer.name, normalizer.add_dummy_prefix = "identity", True
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    path.write_bytes(model.SerializeToString())


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab", type=Path, required=True, help="ggml-vocab-llama-spm.gguf of a llama.cpp checkout")
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    folder, size = arguments.folder, SIZES[arguments.size]
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder / "tokenizer.model", arguments.vocab)
    write_weights(folder, shapes(size), arguments.shards)
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))


if __name__ == "__main__":
    main()
