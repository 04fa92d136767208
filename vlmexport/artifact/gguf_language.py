"""A Llama as GGUF: names, row order, types and metadata of the language model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlmexport.artifact import gguf_about, gguf_tokenizer
from vlmexport.artifact.gguf_file import Field
from vlmexport.artifact.gguf_rows import Entry
from vlmexport.artifact.imatrix import ImportanceMatrix
from vlmexport.checkpoint import Checkpoint, LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import Unsupported, UsageError
from vlmexport.quantize.gguf_mix import Mix, in_order, needs_importance, tensor_types
from vlmexport.quantize.gguf_override import given_types
from vlmexport.quantize.gguf_rules import Decoder

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INSIDE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_QUANTIZATION_VERSION = 2


def gguf_name(name: str) -> str:
    """The GGUF name of a tensor of ``LlamaForCausalLM``.

    Raises:
        Unsupported: a tensor that llama.cpp's Llama does not have.
    """
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match and match[2] in _INSIDE:
        return f"blk.{match[1]}.{_INSIDE[match[2]]}.{match[3]}"
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    raise Unsupported(f"GGUF cannot hold the language model's tensor {name}", "use an ONNX bundle")


def tensors_of(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """GGUF name → tensor; a tied output is left out."""
    spec = checkpoint.spec.language
    if spec.kind != "llama":
        raise Unsupported(f"GGUF export knows Llama decoders, not {spec.kind!r}", "use an ONNX bundle")
    found = {gguf_name(name): tensor for name, tensor in checkpoint.tensors["language"].items()}
    if spec.tie_word_embeddings:
        found.pop("output.weight", None)
    return found


def importance_names(spec: LanguageSpec) -> dict[str, str]:
    """Layer path of the statistics → GGUF name of its weight. A tied output weighs the embedding."""
    names = {
        f"language.model.layers.{layer}.{part}": f"blk.{layer}.{name}.weight"
        for layer in range(spec.num_layers)
        for part, name in _INSIDE.items()
        if not name.endswith("norm")
    }
    names["language.lm_head"] = "token_embd.weight" if spec.tie_word_embeddings else "output.weight"
    return names


def types_of(
    spec: LanguageSpec,
    mix: Mix,
    texts: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    importance: ImportanceMatrix | None,
) -> dict[str, str]:
    """The type of every tensor of the language model.

    Args:
        texts: types given by hand, ``REGEX=TYPE`` each.

    Raises:
        UsageError: a type that cannot be given, or one that needs an importance matrix where there is none.
    """
    decoder = Decoder(spec.num_layers, spec.num_heads // spec.num_kv_heads)
    types = tensor_types(mix, shapes, decoder, importance is not None, given_types(texts, shapes))
    measured = importance.columns if importance else {}
    for name, kind in types.items():
        if needs_importance(name, kind) and name not in measured:
            raise UsageError(
                f"{mix.name} would make {name} {kind}, which needs an importance matrix that covers it",
                "use --imatrix auto or a file, or a type such as q2_k or q3_k_m",
            )
    return types


def entries(
    spec: LanguageSpec,
    tensors: Mapping[str, LazyTensor],
    types: Mapping[str, str],
    importance: ImportanceMatrix | None,
) -> list[Entry]:
    """The file's tensors."""
    found = []
    for name in in_order(list(tensors)):
        tensor = tensors[name]
        heads = spec.num_heads if ".attn_q." in name else spec.num_kv_heads if ".attn_k." in name else 0
        column = importance.columns.get(name) if importance else None
        weights = column.mean if column else None
        found.append(Entry(name, tensor.shape, types[name], tensor, heads, weights))
    return found


def fields(checkpoint: Checkpoint, mix: Mix, rows: int) -> dict[str, Field]:
    """Metadata of the language model and its tokenizer; ``rows`` of the embedding are the vocabulary."""
    spec = checkpoint.spec.language
    found: dict[str, Field] = {
        "general.type": ("str", "model"),
        "general.file_type": ("u32", mix.file_type),
        "general.quantization_version": ("u32", _QUANTIZATION_VERSION),
        "llama.vocab_size": ("u32", rows),
        "llama.context_length": ("u32", spec.max_positions),
        "llama.embedding_length": ("u32", spec.hidden_size),
        "llama.block_count": ("u32", spec.num_layers),
        "llama.feed_forward_length": ("u32", spec.intermediate_size),
        "llama.attention.head_count": ("u32", spec.num_heads),
        "llama.attention.head_count_kv": ("u32", spec.num_kv_heads),
        "llama.attention.layer_norm_rms_epsilon": ("f32", spec.rms_norm_eps),
        "llama.attention.key_length": ("u32", spec.head_dim),
        "llama.attention.value_length": ("u32", spec.head_dim),
        "llama.rope.dimension_count": ("u32", spec.head_dim),
        "llama.rope.freq_base": ("f32", spec.rope_theta),
    }
    found |= gguf_about.fields(checkpoint, "language") | gguf_about.sampling(checkpoint.about)
    return found | gguf_tokenizer.fields(checkpoint.tokenizer, checkpoint.spec, rows)
